"""Random transcoders over a subject: cross-layer, Top-K, with a skip connection.

The subjects' own are per-layer with ReLU (fixture) or JumpReLU (organism). Encoders are scaled so
that pre-activations have unit spread on the subject's prompt; a feature in six or so is active.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from subjects import Subject

from em_circuits.bases import TranscoderPart, transcoder_parts
from em_circuits.graphs.held import captured
from em_circuits.models.dictionaries import TranscoderDictionary
from em_circuits.models.transcoders import Transcoders

FEATURES = 40


def cross_layer_transcoder(
    subject: Subject, activation: str = "relu", seed: int = 0
) -> Transcoders:
    """A small one that reads and writes where the subject's own transcoders do."""
    threshold = torch.full((FEATURES,), 0.4) if activation == "JumpReLU" else None
    return _set(subject, seed, cross_layer=True, threshold=threshold)


def per_layer_parts(subject: Subject, kind: str, seed: int = 0) -> tuple[TranscoderPart, ...]:
    """Parts of random per-layer transcoders: ``top-k`` or ``skip``."""
    more = {"top_k": 6} if kind == "top-k" else {}
    made = _set(subject, seed, skip=kind == "skip", **more)
    return transcoder_parts(subject.pair.merged, made)


def write_cross_layer(folder: Path, transcoders: Transcoders) -> Path:
    """The files of circuit-tracer's layout."""
    folder.mkdir(parents=True)
    for i, one in enumerate(transcoders.layers):
        small = {f"b_enc_{i}": one.b_enc, f"b_dec_{i}": one.b_dec}
        if one.threshold is not None:
            small[f"threshold_{i}"] = one.threshold.contiguous()
        save_file({f"W_enc_{i}": one.W_enc} | small, folder / f"W_enc_{i}.safetensors")
        save_file({f"W_dec_{i}": _decoder(one)}, folder / f"W_dec_{i}.safetensors")
    return configured(folder, transcoders)


def write_scope_2_cross_layer(folder: Path, transcoders: Transcoders) -> Path:
    """The files of gemma-scope-2: a decoder row for every layer, those before the encoder's too."""
    folder.mkdir(parents=True)
    names = [f"layer_{i}/params.safetensors" for i in range(len(transcoders))]
    for i, (one, name) in enumerate(zip(transcoders.layers, names, strict=True)):
        rows = torch.full((one.width, i, one.d_model), 7.0)  # which nothing may read
        assert one.threshold is not None
        tensors = {
            "w_enc": one.W_enc.T.contiguous(),
            "w_dec": torch.cat([rows, _decoder(one)], 1),
            "b_enc": one.b_enc,
            "b_dec": one.b_dec,
            "threshold": one.threshold.contiguous(),
        }
        (folder / name).parent.mkdir()
        save_file(tensors, folder / name)
    return configured(folder, transcoders, transcoders=names)


def configured(folder: Path, made: Transcoders, **more: object) -> Path:
    """With circuit-tracer's ``config.yaml`` beside the files."""
    record = {
        "model_kind": "cross_layer_transcoder",
        "model_name": "somewhere/lifelike-1b",
        "feature_input_hook": made.feature_input_hook,
        "feature_output_hook": made.feature_output_hook,
        "scan": "somewhere/clt",
        **more,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(record))
    return folder


def _decoder(one: TranscoderDictionary) -> torch.Tensor:
    rows = one.matrices("W_dec", None)
    return rows if rows.ndim == 3 else rows[:, None]


def _set(
    subject: Subject, seed: int, *, cross_layer: bool = False, skip: bool = False, **more: Any
) -> Transcoders:
    model, generator = subject.pair.merged, torch.Generator().manual_seed(seed)
    own, n_layers, width = model.transcoders, model.sites.n_layers, model.decoder.d_model
    assert own is not None
    made = []
    for layer, spread in enumerate(_spreads(subject)):
        writes = n_layers - layer if cross_layer else 1
        places = (writes,) if cross_layer else ()
        held = {
            "W_enc": _drawn(generator, FEATURES, width) / spread,
            "W_dec": 0.1 * _drawn(generator, FEATURES, *places, width),
        }
        biases = -0.5 + 0.1 * _drawn(generator, FEATURES), 0.02 * _drawn(generator, width)
        through = 0.1 / spread * _drawn(generator, width, width) if skip else None
        made.append(
            TranscoderDictionary(
                layer, _rows_of(held), *biases, W_skip=through, n_writes=writes, **more
            )
        )
    hooks = own.feature_input_hook, own.feature_output_hook
    return Transcoders(tuple(made), *hooks, cross_layer=cross_layer)


def _rows_of(held: dict[str, torch.Tensor]) -> Callable[[str, torch.Tensor | None], torch.Tensor]:
    return lambda name, ids: held[name] if ids is None else held[name][ids]


def _drawn(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator)


def _spreads(subject: Subject) -> list[float]:
    """By layer, the length of what a transcoder reads, typically."""
    model = subject.pair.merged
    reads = captured(model, transcoder_parts(model), subject.input_ids)
    return [float(x[1:].float().norm(dim=-1).mean()) for x in reads]
