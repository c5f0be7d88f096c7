"""Training of a transcoder set on a text, into circuit-tracer's directory form.

    train_transcoders(out, source, pieces, header, recipe, seed=0)

Layers are trained in groups, side by side. Of a group a checkpoint holds weights, optimiser and
idle features, and a layer's file is written whole when the group is done: a run that is killed and
started again ends with the bytes of one that was not, on as many threads. ``config.yaml`` comes
last. In memory are, beside the models, one buffer of activations, the group's weights three times
(Adam), and two covariances a layer.

A layer that is not chosen has features that never fire: its whole MLP is error.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from em_circuits.models.transcoder_files import DIFFERENCES
from em_circuits.progress import Progress, no_progress
from em_circuits.training.activations import ActivationStream, MlpSource
from em_circuits.training.affine import AffineMaps, affine_maps
from em_circuits.training.optimise import OptimiserConfig, optimise, reproducible
from em_circuits.training.settings import BankConfig, Target
from em_circuits.training.transcoder_bank import (
    TranscoderBank,
    save_header,
    save_layer,
    set_header,
)
from pivotal_tokens.artefacts import atomic_path
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen

KEPT_MAPS = ".affine_"
"""Start of the names of files with affine maps, which are of a run that is not done."""
_HELD = 40
"""Pieces held out, at most."""
_CALIBRATION = 8
"""Batches on which the threshold of `batch-topk` is set."""


class SetRecipe(Frozen):
    """Everything that decides a set's weights, apart from the seed and the number of threads."""

    bank: BankConfig
    optimiser: OptimiserConfig
    target: Target = "base"
    layers: tuple[int, ...]
    at_once: int = Field(ge=1)
    """Layers trained side by side."""
    batch: int = 512
    """Positions a step."""
    buffer: int = Field(ge=1)
    """Positions whose activations are in memory at a time."""
    models: tuple[str, ...]
    """Fingerprints."""
    text: str
    """Hash of the pieces."""
    dtype: str
    """Of the models, and of the files."""


def train_transcoders(
    out: Path,
    source: MlpSource,
    pieces: list[list[int]],
    recipe: SetRecipe,
    *,
    model_name: str,
    seed: int = 0,
    progress: Progress = no_progress,
) -> AffineMaps:
    """Train a set into a directory; what stands there of the same recipe is taken up.

    Args:
        source: Of all layers that are trained.
        pieces: Token ids to train on, each behind the first token.

    Returns:
        The affine maps of the same text, in the order of the layers.
    """
    n_layers = len(source.decoders[0].layers)
    found: list[AffineMaps] = []
    for start in range(0, len(recipe.layers), recipe.at_once):
        layers = recipe.layers[start : start + recipe.at_once]
        stream = ActivationStream(
            replace(source, layers=layers), pieces, recipe.buffer, recipe.batch, seed, progress
        )
        maps = _kept_maps(out / f"{KEPT_MAPS}{layers[0]}.safetensors", stream)
        found.append(maps)
        if not all(_file(out, layer).is_file() for layer in layers):
            _train_group(out, stream, maps, recipe, seed, progress)
    for layer in set(range(n_layers)) - set(recipe.layers):
        if not _file(out, layer).is_file():
            example = load_file(_file(out, recipe.layers[0]))
            save_layer(out, layer, {name: torch.zeros_like(t) for name, t in example.items()})
    header: dict[str, Any] = set_header(recipe.bank, model_name, f"em-circuits/{out.name}")
    header["trained_layers"] = list(recipe.layers)
    if recipe.target == "difference":
        header["model_kind"] = DIFFERENCES
    save_header(out, header)
    return AffineMaps(
        *(torch.cat([getattr(one, name) for one in found]) for name in ("weight", "bias", "mean"))
    )


def _train_group(
    out: Path,
    stream: ActivationStream,
    maps: AffineMaps,
    recipe: SetRecipe,
    seed: int,
    progress: Progress,
) -> None:
    layers = stream.source.layers
    inputs, outputs = stream.held(0)
    with reproducible(seed):
        bank = TranscoderBank(
            n_layers=len(layers), d_model=inputs.shape[-1], config=recipe.bank
        ).to(inputs.device)
        first = max(recipe.batch, recipe.bank.features)
        bank.start(
            inputs[:, :first].float(), outputs[:, :first].float(), maps.weight.to(inputs.device)
        )
    checkpoint = out / f".layer_{layers[0]}.checkpoint.safetensors"
    optimise(
        bank,
        lambda step: bank(*stream.batch_at(step)),
        recipe.optimiser,
        checkpoint=checkpoint,
        label=f"layers {layers[0]} to {layers[-1]}" if len(layers) > 1 else f"layer {layers[0]}",
        after_step=bank.project,
        progress=progress,
    )
    threshold = torch.stack(
        [bank.threshold(stream.batch_at(step)[0]) for step in range(_CALIBRATION)]
    ).mean(0)
    dtype = getattr(torch, recipe.dtype)
    for layer, tensors in zip(layers, bank.folded(threshold), strict=True):
        save_layer(out, layer, {name: t.to(dtype) for name, t in tensors.items()})
    checkpoint.unlink()


def _kept_maps(path: Path, stream: ActivationStream) -> AffineMaps:
    if not path.is_file():
        maps = affine_maps(stream)
        with atomic_path(path) as temporary:
            save_file({name: t.contiguous() for name, t in vars(maps).items()}, temporary)
    tensors: dict[str, Tensor] = load_file(path)
    return AffineMaps(**tensors)


def _file(out: Path, layer: int) -> Path:
    return out / f"layer_{layer}.safetensors"


def split_pieces(
    documents: Sequence[list[list[int]]], seed: int, tokens: int | None
) -> tuple[list[list[int]], list[list[int]]]:
    """Pieces to train on, of at most `tokens` positions, and pieces held out.

    Documents are shuffled and stand one behind the other; the last tenth, and at most 40
    pieces, is held out: at most one document has a part on either side.

    Raises:
        RequestError: If nothing would be held out.
    """
    order = list(range(len(documents)))
    random.Random(f"documents/{seed}").shuffle(order)
    pieces = [piece for index in order for piece in documents[index]]
    held = max(2, min(len(pieces) // 10, _HELD))
    if len(pieces) < 2 * held:
        raise RequestError("the text is too short to hold a part out; give more of it")
    train, total = [], 0
    for piece in pieces[:-held]:
        if tokens is not None and total >= tokens:
            break
        train.append(piece)
        total += len(piece) - 1
    return train, pieces[-held:]
