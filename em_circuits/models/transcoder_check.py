"""Quality of a transcoder set: its files, its numbers, and how much of each MLP it explains.

Over the positions of a text but the first, of a layer's MLP output y and its reconstruction z:

    FVU = sum |y - z|^2 / sum |y - mean y|^2,    L0 = features that fire at a position
    dead = features that fire nowhere

FVU 0 is a perfect reconstruction, 1 no better than the mean. A layer of FVU above 0.9 is tried at
every other layer: files in the wrong order show so.

    checks = transcoder_checks(files, base_name="Llama-3.2-1B")
    layers = reconstruction_quality(model, tokenizer, transcoders, passages)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from em_circuits.models.check import Check
from em_circuits.models.dictionaries import reconstruction
from em_circuits.models.family import Decoder
from em_circuits.models.foreign import foreign_errors
from em_circuits.models.health import named_base
from em_circuits.models.sites import FeatureSites
from em_circuits.models.text import cut_pieces, encode
from em_circuits.models.transcoder_files import TranscoderFiles
from em_circuits.models.transcoders import Transcoders, load_transcoders, not_finite
from em_circuits.progress import Progress, no_progress, tracked
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen

BAD_FVU = 0.9
"""A layer of more is reported."""
_POSITIONS = 256
"""Tokens of a passage that are run at once."""


class LayerQuality(Frozen):
    """How well one layer's features stand for its MLP."""

    layer: int
    fvu: float
    """Share of the MLP output's variance that is missed."""
    l0: float
    """Features that fire at a position, on average."""
    dead: int
    """Features that fire nowhere in the text."""
    fits: int | None = None
    """The layer whose MLP this file explains better, where it explains its own badly."""


class TranscoderReport(Frozen):
    """What is known of a transcoder set."""

    path: str
    format: str
    layers: int
    d_model: int
    width: int
    """Features of a layer."""
    feature_input_hook: str
    feature_output_hook: str
    ok: bool
    """No check failed that would stop the work."""
    checks: tuple[Check, ...]
    quality: tuple[LayerQuality, ...] = ()
    """By layer, where a text was given."""
    positions: int = 0
    """Positions of the text that were counted."""


def transcoder_checks(files: TranscoderFiles, base_name: str | None = None) -> list[Check]:
    """Names the layer, matrix and file of every number that is none, and another model's set.

    Args:
        files: Their headers were looked into already.
        base_name: The base model that is meant, where one is.
    """
    loaded = load_transcoders(files, device=torch.device("cpu"), dtype=torch.float32, place="disk")
    name, expected, advice = "transcoder weights finite", "every number finite", "download it again"
    checks = []
    for file in files.layers:
        with foreign_errors(f"layer {file.layer}: {file.path} cannot be read"):
            found = not_finite(loaded[file.layer], file)
        if found is not None:
            checks.append(Check(name, False, found, expected, advice))
    if not checks:
        checks.append(Check(name, True, f"{len(files.layers)} layers", expected))
    if base_name is not None:
        checks.append(named_base(files.config.get("model_name"), base_name))
    return checks


@torch.no_grad()
def reconstruction_quality(
    model: nn.Module,
    tokenizer: Any,
    transcoders: Transcoders,
    passages: Iterable[str],
    progress: Progress = no_progress,
) -> tuple[list[LayerQuality], int]:
    """FVU, L0 and dead features of each layer on some passages.

    Args:
        model: The base.
        tokenizer: Its tokenizer.
        transcoders: On its device, in its precision.
        passages: Each is run by itself, in pieces of 256 tokens.
        progress: Called after every piece.

    Returns:
        A line per layer, and the number of positions.

    Raises:
        RequestError: If there are no two tokens to run.
    """
    pieces = []
    for passage in passages:
        pieces += cut_pieces(encode(tokenizer, passage), _POSITIONS)
    if not pieces:
        raise RequestError("--text has no passage of two tokens or more")
    hooks = transcoders.feature_input_hook, transcoders.feature_output_hook
    sites = FeatureSites.of(Decoder.of(model), *hooks)
    layers = range(len(transcoders))
    sums = [FitSums(transcoders[layer].width, transcoders[layer].d_model) for layer in layers]
    for ids in tracked(pieces, "reconstruction", progress):
        reads, outputs = _run(model, sites, ids)
        acts = {layer: transcoders[layer].encode(reads[layer]) for layer in layers}
        for layer in layers:
            rebuilt = reconstruction(transcoders.layers, layer, acts, reads[layer])
            sums[layer].add(outputs[layer], rebuilt, acts[layer])
    lines = [
        LayerQuality(layer=layer, fvu=one.fvu, l0=one.l0, dead=int((~one.fired).sum()))
        for layer, one in enumerate(sums)
    ]
    if not transcoders.cross_layer:
        for i, line in enumerate(lines):
            if line.fvu > BAD_FVU:
                fits = _best_layer(model, sites, transcoders, i, pieces)
                lines[i] = line.model_copy(update={"fits": fits})
    return lines, sums[0].n


def in_order(files: TranscoderFiles, quality: Iterable[LayerQuality]) -> list[Check]:
    """A failed check for every file that explains the MLP of another layer than its own."""
    return [
        Check(
            "layers in order",
            False,
            f"layer {one.layer}: {files.layers[one.layer].path} explains the MLP of {one.fits}",
            f"FVU of at most {BAD_FVU:g} at its own layer, found {one.fvu:.3g}",
            "the files are called by other layers than they are of",
        )
        for one in quality
        if one.fits is not None
    ]


class FitSums:
    """Sums over positions, in float64, behind FVU, L0 and dead features."""

    def __init__(self, width: int, d_model: int) -> None:
        self.n, self.missed, self.squares, self.firing = 0, 0.0, 0.0, 0
        self.mean = torch.zeros(d_model, dtype=torch.float64)
        self.fired = torch.zeros(width, dtype=torch.bool)

    def add(
        self,
        output: Float[Tensor, "pos d_model"],
        rebuilt: Float[Tensor, "pos d_model"],
        acts: Float[Tensor, "pos feature"] | None = None,
    ) -> None:
        y = output.double().cpu()
        self.n += len(y)
        self.missed += float((y - rebuilt.double().cpu()).square().sum())
        self.squares += float(y.square().sum())
        self.mean += y.sum(0)
        if acts is not None:
            self.firing += int((acts != 0).sum())
            self.fired |= (acts != 0).any(0).cpu()

    @property
    def fvu(self) -> float:
        variance = self.squares - float(self.mean.square().sum()) / self.n
        return self.missed / variance if variance > 0 else float(self.missed > 0)

    @property
    def l0(self) -> float:
        return self.firing / self.n


def _run(
    model: nn.Module, sites: FeatureSites, ids: list[int]
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """What each layer reads and writes, at every position but the first."""
    reads: dict[int, Tensor] = {}
    writes: dict[int, Tensor] = {}

    def read(layer: int, x: Tensor) -> None:
        reads[layer] = x[0, 1:]

    def write(layer: int, y: Tensor) -> None:
        writes[layer] = y[0, 1:]

    device = next(model.parameters()).device
    with sites.hooked(read=read, write=write):
        model(input_ids=torch.tensor([ids], device=device), use_cache=False)
    return reads, writes


def _best_layer(
    model: nn.Module, sites: FeatureSites, transcoders: Transcoders, i: int, pieces: list[list[int]]
) -> int | None:
    """The layer whose MLP the file of layer `i` explains, if it explains any."""
    one = transcoders[i]
    sums = [FitSums(one.width, one.d_model) for _ in transcoders.layers]
    for ids in pieces:
        reads, outputs = _run(model, sites, ids)
        for layer, own in enumerate(sums):
            x = reads[layer]
            own.add(outputs[layer], one.decode(one.encode(x), x))
    best = min(range(len(sums)), key=lambda layer: sums[layer].fvu)
    return best if best != i and sums[best].fvu < BAD_FVU else None
