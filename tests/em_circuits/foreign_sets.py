"""Sets of random transcoders in the files of SAELens and sparsify."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

D, N, LAYERS = 12, 40, 3


def drawn(layer: int, *, skip: bool = False, threshold: bool = False) -> dict[str, torch.Tensor]:
    """One layer's numbers, as SAELens names and turns them."""
    generator = torch.Generator().manual_seed(layer)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    held = {
        "W_enc": normal(D, N) / D**0.5,
        "W_dec": normal(N, D),
        "b_enc": normal(N) - 0.3,
        "b_dec": normal(D),
    }
    held |= {"W_skip": normal(D, D)} if skip else {}
    # Some below 0, where ReLU is what is left of it.
    return held | ({"threshold": normal(N)} if threshold else {})


def saelens(root: Path, architecture: str, **config: Any) -> Path:
    skip, threshold = "skip" in architecture, "jumprelu" in architecture
    for layer in range(LAYERS):
        folder = root / f"layer_{layer}" / "width_40"
        folder.mkdir(parents=True)
        save_file(drawn(layer, skip=skip, threshold=threshold), folder / "sae_weights.safetensors")
        metadata = {
            "hook_name": f"blocks.{layer}.ln2.hook_normalized",
            "hook_name_out": f"blocks.{layer}.hook_mlp_out",
            "model_name": "somewhere/base",
        }
        record = {"architecture": architecture, "d_in": D, "d_sae": N, "metadata": metadata}
        (folder / "cfg.json").write_text(json.dumps(record | config))
    return root


def sparsify(root: Path, *, skip: bool = False, name: str = "layers.{}.mlp", **config: Any) -> Path:
    for layer in range(LAYERS):
        folder = root / name.format(layer)
        folder.mkdir(parents=True)
        held = drawn(layer, skip=skip)
        held = {
            "encoder.weight": held.pop("W_enc").T.contiguous(),
            "encoder.bias": held.pop("b_enc"),
            **held,
        }
        save_file(held, folder / "sae.safetensors")
        record = {"activation": "topk", "k": 5, "d_in": D, "num_latents": N, "transcode": True}
        record |= {"skip_connection": skip, **config}
        (folder / "cfg.json").write_text(json.dumps(record))
    return root
