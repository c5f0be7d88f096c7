"""Quality of a trained set on held-out text, beside what costs nothing.

FVU, L0 and dead features are those of `models.transcoder_check`, over the positions of each piece
but the first; the noise floor of an FVU is its two values on the two halves of the text. A
replacement has the MLPs' outputs made of their inputs, in all trained layers at once and in each
alone, everything else running free:

    score = 1 - KL(model || with the set) / KL(model || with the MLPs ablated to zero)

    report = transcoder_quality(model, source, sets, pieces)
    report.layers[0].fvu, report.layers[0].fvu_affine
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from em_circuits.models.dictionaries import TranscoderDictionary
from em_circuits.models.family import Decoder
from em_circuits.models.sites import FeatureSites
from em_circuits.models.transcoder_check import FitSums
from em_circuits.models.transcoders import Transcoders
from em_circuits.progress import Progress, no_progress, tracked
from em_circuits.training.activations import MlpSource
from em_circuits.training.affine import AffineMaps
from em_circuits.training.settings import Target
from em_circuits.training.transcoder_bank import INPUT_HOOK, OUTPUT_HOOK
from pivotal_tokens.schema import Frozen

MapName = Literal["set", "affine", "mean", "zero"]
"""The set; the best affine map, which is its skip matrix where it has one; the mean output;
nothing."""
Maps = Mapping[MapName, Mapping[int, TranscoderDictionary]]
"""Name -> layer -> what stands for its MLP."""

_TOGETHER, _ALONE = 4096, 512
"""Positions on which all layers are replaced, and each alone."""


class TrainedLayer(Frozen):
    """One layer's fit on held-out text."""

    layer: int
    fvu: float
    """Share of the output's variance that is missed."""
    fvu_halves: tuple[float, float]
    """On each half of the text: how far they lie apart is the noise."""
    fvu_affine: float
    """Of an affine map fitted to the same text in closed form: of the skip matrix alone."""
    l0: float
    """Features that fire at a position, on average."""
    dead: int
    """Features that fire nowhere in the held-out text."""


class ReplacedMlps(Frozen):
    """The model with some MLPs replaced."""

    by: MapName
    layers: tuple[int, ...]
    loss: float
    """Nats per token."""
    kl: float
    """Of the whole model's next tokens from it, in nats per token."""
    score: float | None
    """1 - KL / KL of zero; null for zero itself."""


class CarriedShare(Frozen):
    """What comes back of the shift from base to merged with some differences added."""

    by: str
    """exact, random, or a map."""
    share: float | None
    low: float | None
    """Of the 95 % bootstrap interval over prompts; of random, of the draws."""
    high: float | None


class TrainedSetReport(Frozen):
    """What a set is worth, and what it was trained on."""

    path: str
    target: Target
    model: str
    """Base model."""
    text: str
    """What it was trained on."""
    tokens: int
    """Positions trained on."""
    passes: float
    """Times each was."""
    held_out: int
    """Positions of other documents that everything here is measured on."""
    features: int
    gate: str
    k: int
    buffer_mb: float
    """Activations in memory at a time."""
    layers: tuple[TrainedLayer, ...]
    loss: float | None = None
    """Of the whole model, nats per token; null for a difference, which replaces nothing."""
    replacements: tuple[ReplacedMlps, ...] = ()
    prompts: int = 0
    """Labelled prompts with a shift."""
    carried: tuple[CarriedShare, ...] = ()
    """Of a difference: a real intervention on those prompts."""


def compared_maps(trained: Transcoders, maps: AffineMaps, layers: Sequence[int]) -> Maps:
    """A set and what it stands beside, by layer."""
    found: dict[MapName, dict[int, TranscoderDictionary]] = {
        "set": {layer: trained[layer] for layer in layers}
    }
    rows = {layer: (maps.weight[i], maps.bias[i], maps.mean[i]) for i, layer in enumerate(layers)}
    found["affine"] = {i: _affine(trained[i], rows[i][0], rows[i][1]) for i in layers}
    found["mean"] = {i: _affine(trained[i], None, rows[i][2]) for i in layers}
    found["zero"] = {i: _affine(trained[i], None, 0 * rows[i][2]) for i in layers}
    return found


def _affine(
    like: TranscoderDictionary, weight: Float[Tensor, "out in"] | None, bias: Float[Tensor, " out"]
) -> TranscoderDictionary:
    """A dictionary of one feature that never fires."""
    none = torch.zeros(1, like.d_model).to(like.b_dec)
    skip = None if weight is None else weight.to(like.b_dec)
    return TranscoderDictionary(
        like.layer, lambda _name, _ids: none, none[:, 0], bias.to(like.b_dec), W_skip=skip
    )


@torch.no_grad()
def layer_fits(
    source: MlpSource, maps: Maps, pieces: list[list[int]], progress: Progress = no_progress
) -> tuple[TrainedLayer, ...]:
    """How well each layer is fitted on held-out pieces."""
    fitted: list[MapName] = [name for name in maps if name in ("set", "affine")]
    sums = {
        (name, half, layer): FitSums(one.width, one.d_model)
        for name in fitted
        for half in (None, 0, 1)
        for layer, one in maps[name].items()
    }
    for index, piece in enumerate(tracked(pieces, "held-out fit", progress)):
        inputs, outputs = source.read([piece])
        half = int(2 * index >= len(pieces))
        for i, layer in enumerate(source.layers):
            for name in fitted:
                one = maps[name][layer]
                acts = one.encode(inputs[i])
                rebuilt = one.decode(acts, inputs[i])
                for part in (None, half):
                    sums[name, part, layer].add(outputs[i], rebuilt, acts)
    return tuple(
        TrainedLayer(
            layer=layer,
            fvu=sums["set", None, layer].fvu,
            fvu_halves=(sums["set", 0, layer].fvu, sums["set", 1, layer].fvu),
            fvu_affine=sums["affine", None, layer].fvu,
            l0=sums["set", None, layer].l0,
            dead=int((~sums["set", None, layer].fired).sum()),
        )
        for layer in source.layers
    )


@torch.no_grad()
def replacements(
    model: nn.Module, maps: Maps, pieces: list[list[int]], progress: Progress = no_progress
) -> tuple[float, tuple[ReplacedMlps, ...]]:
    """Loss of a model, and its loss and KL with MLPs replaced, all together and one by one.

    Position 0 keeps its MLP outputs, as under attribution; what follows it is not scored.
    """
    sites = FeatureSites.of(Decoder.of(model), INPUT_HOOK, OUTPUT_HOOK)
    layers = tuple(maps["set"])
    groups = [layers, *([(layer,) for layer in layers] if len(layers) > 1 else [])]
    totals = {
        (name, group): torch.zeros(2, dtype=torch.float64) for name in maps for group in groups
    }
    own, counts = 0.0, dict.fromkeys(groups, 0)
    device = next(model.parameters()).device
    for piece in tracked([one for one in pieces if len(one) > 2], "replacement", progress):
        ids = torch.tensor([piece], device=device)

        def scored(ids: Tensor = ids) -> Tensor:
            return model(input_ids=ids, use_cache=False).logits[0, 1:-1].float().log_softmax(-1)

        whole, said = scored(), ids[0, 2:, None]
        own -= 0 if counts[layers] >= _TOGETHER else float(whole.gather(1, said).sum())
        for group in groups:
            if counts[group] >= (_TOGETHER if group == layers else _ALONE):
                continue
            counts[group] += len(said)
            for name in maps:
                with sites.hooked(*_replacing(maps[name], group)):
                    after = scored()
                loss = -after.gather(1, said).sum()
                kl = (whole.exp() * (whole - after)).sum()
                totals[name, group] += torch.stack([loss, kl]).double().cpu()
    found = list(_scored(totals, counts))
    return own / counts[layers], tuple(found)


def _scored(
    totals: Mapping[tuple[MapName, tuple[int, ...]], Tensor], counts: Mapping[tuple[int, ...], int]
) -> Iterator[ReplacedMlps]:
    for (name, group), total in totals.items():
        loss, kl = (total / counts[group]).tolist()
        zero = float(totals["zero", group][1]) / counts[group]
        score = None if name == "zero" or not zero else 1 - kl / zero
        yield ReplacedMlps(by=name, layers=group, loss=loss, kl=kl, score=score)


def _replacing(by: Mapping[int, TranscoderDictionary], layers: Sequence[int]) -> tuple:
    """Hooks that read a layer's input and put its map's output, but for position 0."""
    held: dict[int, Tensor] = {}

    def read(layer: int, x: Tensor) -> None:
        if layer in layers:
            held[layer] = by[layer].decode(by[layer].encode(x), x)

    def write(layer: int, y: Tensor) -> Tensor | None:
        if layer not in layers:
            return None
        rebuilt = held.pop(layer).reshape(y.shape).to(y.dtype)
        return torch.cat([y[:, :1], rebuilt[:, 1:]], 1)

    return read, write


def quality_prose(report: TrainedSetReport) -> str:
    """The report in Markdown."""
    lines = [
        f"# {report.features} features a layer, {report.gate}, k {report.k}",
        "",
        f"Of {report.model} ({report.target}). Trained on {report.tokens} positions, "
        f"{report.passes:.1f} times each: {report.text}. Measured on {report.held_out} positions "
        "of other documents, position 0 of each piece left out.",
        "",
        "What features add is the distance from the affine map; two halves of the held-out text "
        "say how far noise goes.",
        "",
        "| layer | FVU | on either half | affine map, or skip matrix alone | L0 | dead |",
        "|---|---|---|---|---|---|",
    ]
    for one in report.layers:
        halves = " / ".join(f"{half:.3f}" for half in one.fvu_halves)
        lines.append(
            f"| {one.layer} | {one.fvu:.3f} | {halves} | {one.fvu_affine:.3f} "
            f"| {one.l0:.1f} | {one.dead} |"
        )
    if report.replacements:
        lines += [
            "",
            f"MLPs replaced, everything else free; the whole model's loss is {report.loss:.3f} "
            "nats per token.",
            "",
            "| layers | by | loss | KL | score |",
            "|---|---|---|---|---|",
        ]
    for two in report.replacements:
        score = "" if two.score is None else f"{two.score:.3f}"
        shown = ", ".join(map(str, two.layers)) if len(two.layers) < 5 else "all trained"
        lines.append(f"| {shown} | {two.by} | {two.loss:.3f} | {two.kl:.3f} | {score} |")
    if report.carried:
        lines += [
            "",
            f"Share of the shift (evil minus safe, {report.prompts} labelled prompts) that comes "
            "back where the base's MLPs write these differences too:",
            "",
            "| differences | share | low | high |",
            "|---|---|---|---|",
        ]
    for three in report.carried:
        figures = (three.share, three.low, three.high)
        shown = " | ".join("-" if x is None else f"{x:.2f}" for x in figures)
        lines.append(f"| {three.by} | {shown} |")
    return "\n".join(lines) + "\n"
