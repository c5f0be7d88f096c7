"""Geometry of an adapter over labelled prompts: what each rank does, reads and writes.

    table = lora_geometry(work, [], GeometryRequest())
    record = LoraGeometry.model_validate(table.record)
    record.sentence, record.ranks[0].effect, record.agreement[0].statistics["spearman"]

The Parquet has a line per rank and compared layer; everything else stands in the JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from em_circuits.bases.adapters import AdapterPart, adapter_of, adapter_parts
from em_circuits.cache import CachedTable, TableHead, cached_table
from em_circuits.experiments.aggregate import ChosenPrompt, choose_shown
from em_circuits.experiments.cases import UnusedPrompt
from em_circuits.features.adapter_geometry import Alignment, Spectrum, alignments, spectra
from em_circuits.features.contexts import context_at
from em_circuits.graphs.held import captured
from em_circuits.interventions.adapter_ranks import (
    STEPS,
    drop_effects,
    integrated_rank_effects,
    n_ranks,
    pulls,
    random_writes,
    rank_gradients,
    scaled_logits,
)
from em_circuits.models.adapter import LoraAdapter, LoraModule
from em_circuits.models.sharing import tied_to
from em_circuits.progress import tracked
from em_circuits.statistics import (
    DRAWS,
    STATISTICS,
    Agreement,
    agreement,
    agreement_intervals,
    bootstrap_interval,
    quantile_interval,
)
from em_circuits.workspace import Workspace
from pivotal_tokens.agreement import Estimate
from pivotal_tokens.schema import Frozen

FORMULA = 1
SCALES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
RANDOM_ADAPTERS = 10
"""Random adapters beside the real one in the sweep."""


class GeometryRequest(Frozen):
    """Settings of an adapter's geometry."""

    n_random: int = Field(default=100, ge=20)
    """Random directions of equal norm beside each module's ranks."""
    drop: int = Field(default=256, ge=1)
    """Ranks that are really dropped; those of largest score, where there are more."""
    contexts: int = Field(default=5, ge=0)
    """Contexts of each rank."""
    seed: int = 0


class Trigger(Frozen):
    """One place where a rank answers strongly."""

    prompt_id: str
    position: int
    activation: float
    """``A_r x`` there, signed."""
    marked: str
    """The text around, the token between guillemets."""


class RankEffect(Frozen):
    """One rank of one module. Contrasts are evil minus safe, in logits, means over prompts."""

    module: str
    layer: int | None
    """Counted from 0."""
    rank: int
    """Row of A, from 0."""
    norm_a: float
    norm_b: float
    """Of ``scaling B_r``, with DoRA's factor."""
    activation: float
    """Mean ``|A_r x|`` over positions but the first."""
    score: float
    """First order: ``d contrast / d (factor on the rank)`` at the merged model."""
    score_quantile: float
    """Share of random writes of equal norm whose score is smaller in magnitude."""
    integrated: float
    """Part of the shift while all ranks grow together from base to merged."""
    effect: Estimate | None
    """The contrast minus that with this rank really dropped; null if it was not dropped."""
    effects: tuple[float, ...]
    """The same on each prompt, in the order of `prompts`."""
    contexts: tuple[Trigger, ...]


class MethodAgreement(Frozen):
    """Scores of ranks beside really dropping each."""

    method: str
    """`gradient` (the default) or `integrated`."""
    statistics: dict[str, Estimate]
    """Over the ranks of a prompt, mean over prompts: pearson, spearman, sign, top20."""
    pooled: Agreement
    """Over the ranks of all prompts together."""


class SweepPoint(Frozen):
    """The adapter at a multiple of its alpha, mean over prompts."""

    scale: float
    contrast: Estimate
    """Evil minus safe, in logits."""
    evil_mass: Estimate
    random_contrast: Estimate
    """Of adapters that read the same and write random directions of equal norm; middle 95 %."""
    random_evil_mass: Estimate


class LoraGeometry(Frozen):
    """The JSON beside the table of alignments."""

    adapter: str
    pair: str
    prompts: tuple[str, ...]
    left_out: tuple[UnusedPrompt, ...]
    n_random: int
    shift: Estimate
    """Contrast of the merged model minus that of the base."""
    unexplained: tuple[str, ...]
    """Parameters that the fine-tune changed beside the ranks."""
    ranks: tuple[RankEffect, ...]
    """Largest effect first, then those that were not dropped."""
    agreement: tuple[MethodAgreement, ...]
    sweep: tuple[SweepPoint, ...]
    modules: tuple[LoraModule, ...]
    spectra: tuple[Spectrum, ...]
    """Of each module."""
    sentence: str = ""


class GeometryOutput(TableHead, LoraGeometry):
    """The object of `lora geometry --json`; a line is a rank and a compared layer."""

    page: str
    alignments: tuple[Alignment, ...]
    """The first lines of the Parquet, largest cosine first."""


@dataclass
class _Measured:
    """What is read off each prompt."""

    gradient: list[Tensor] = field(default_factory=list)
    integrated: list[Tensor] = field(default_factory=list)
    contrast: list[Tensor] = field(default_factory=list)
    """Adapter (the real one first) x scale."""
    mass: list[Tensor] = field(default_factory=list)
    base: list[float] = field(default_factory=list)
    merged: list[float] = field(default_factory=list)
    pulls: list[list[Tensor]] = field(default_factory=list)
    activations: list[Tensor] = field(default_factory=list)
    """Position but the first x rank."""
    effects: list[Tensor] = field(default_factory=list)


def lora_geometry(
    work: Workspace,
    prefixes: Sequence[str],
    request: GeometryRequest,
    *,
    only_divergent: bool = False,
) -> CachedTable:
    """Geometry of the pair's adapter, or the stored table of equal inputs.

    No prefix means every labelled prompt with a contrast; `only_divergent` leaves the others out.

    Raises:
        RequestError: If the fine-tune is no LoRA adapter, no prompt will do, or one that was named.
    """
    adapter, parts = adapter_of(work.pair), adapter_parts(work.pair)
    shown, left_out = choose_shown(work, prefixes, only_divergent=only_divergent)
    inputs = {
        "formula": FORMULA,
        "pair": work.pair_key,
        **request.model_dump(mode="json"),
        "prompts": [item.identity() for item in shown],
    }

    def compute() -> tuple[dict[str, Any], pd.DataFrame]:
        work.require_healthy(shown[0].prompt)
        found = _measure(work, parts, shown, request)
        lines = alignments(
            work.pair,
            parts,
            n_random=request.n_random,
            seed=request.seed,
            progress=work.progress,
        )
        record = _record(work, adapter, parts, shown, found, request)
        record = record.model_copy(update={"sentence": geometry_sentence(record, lines)})
        return record.model_dump(mode="json"), _frame(lines)

    table = cached_table(work.results / "features", "lora", inputs, compute)
    table.record["left_out"] = [one.model_dump() for one in left_out]
    return table


def _measure(
    work: Workspace,
    parts: Sequence[AdapterPart],
    prompts: Sequence[ChosenPrompt],
    request: GeometryRequest,
) -> _Measured:
    pair, found = work.pair, _Measured()
    drawn = [random_writes(parts, seed=request.seed + i) for i in range(RANDOM_ADAPTERS)]
    cases = [(item.contrast, pair.input_ids(item.shown)) for item in prompts]
    for contrast, ids in tracked(cases, "scores and sweep", work.progress):
        base, merged = (model.next_logits(ids).float().cpu() for model in pair.models)
        weights = contrast.weights(len(base))[None]
        found.base.append(float(base @ weights[0]))
        found.merged.append(float(merged @ weights[0]))
        found.gradient.append(rank_gradients(pair.merged, parts, ids, weights, torch.ones(1))[0])
        found.integrated.append(
            integrated_rank_effects(pair.merged, parts, ids, weights, steps=STEPS)[0]
        )
        found.pulls.append([one[0] for one in pulls(pair.merged, parts, ids, weights)])
        _sweep(work, parts, ids, contrast, drawn, found)
        found.activations.append(_responses(work, parts, ids))
    dropped = _dropped(found, request.drop)
    for contrast, ids in tracked(cases, "ranks dropped", work.progress):
        weights = contrast.weights(pair.merged.decoder.d_vocab)[None]
        effects = torch.full((n_ranks(parts),), torch.nan)
        effects[dropped] = drop_effects(pair.merged, parts, ids, weights, ranks=dropped)[0]
        found.effects.append(effects)
    return found


@torch.no_grad()
def _sweep(
    work: Workspace,
    parts: Sequence[AdapterPart],
    ids: Tensor,
    contrast: Any,
    drawn: Sequence[list[Tensor]],
    found: _Measured,
) -> None:
    factors = torch.tensor(SCALES)[:, None].expand(-1, n_ranks(parts))
    runs = [
        scaled_logits(work.pair.merged, parts, ids, factors, instead=writes)
        for writes in (None, *drawn)
    ]
    found.contrast.append(torch.stack([contrast.value(z).cpu() for z in runs]))
    found.mass.append(torch.stack([contrast.evil_mass(z).cpu() for z in runs]))


def _responses(work: Workspace, parts: Sequence[AdapterPart], ids: Tensor) -> Tensor:
    """Activation of every rank behind the beginning-of-sequence token: position x rank."""
    reads = captured(work.pair.merged, parts, ids)
    each = [part.activations(x)[1:].float() for part, x in zip(parts, reads, strict=True)]
    return torch.cat(each, 1).cpu()


def _dropped(found: _Measured, most: int) -> Tensor:
    """Indices of the ranks of largest score by magnitude, ascending."""
    size = torch.stack(found.gradient).mean(0).abs()
    return size.topk(min(most, len(size))).indices.sort().values


def _record(
    work: Workspace,
    adapter: LoraAdapter,
    parts: Sequence[AdapterPart],
    prompts: Sequence[ChosenPrompt],
    found: _Measured,
    request: GeometryRequest,
) -> LoraGeometry:
    names = tied_to(work.pair.merged.hf, [f"{part.name}.weight" for part in parts])
    shift = torch.tensor(found.merged).double() - torch.tensor(found.base).double()
    return LoraGeometry(
        adapter=adapter.path,
        pair=work.pair_key,
        prompts=tuple(item.prompt.prompt_id for item in prompts),
        left_out=(),
        n_random=request.n_random,
        shift=_over_prompts(shift[:, None], request.seed)[0],
        unexplained=tuple(name for name in work.pair.changed if name not in names),
        ranks=_ranks(work, parts, prompts, found, request),
        agreement=tuple(_agreement(found, request.seed)),
        sweep=_sweep_points(found, request.seed),
        modules=adapter.modules,
        spectra=tuple(spectra(work.pair, parts, n_random=20, seed=request.seed)),
    )


def _ranks(
    work: Workspace,
    parts: Sequence[AdapterPart],
    prompts: Sequence[ChosenPrompt],
    found: _Measured,
    request: GeometryRequest,
) -> tuple[RankEffect, ...]:
    gradient, integrated = (
        torch.stack(values).mean(0).tolist() for values in (found.gradient, found.integrated)
    )
    effects = torch.stack(found.effects).double()
    known = ~effects[0].isnan()
    estimates = iter(_over_prompts(effects[:, known], request.seed))
    sizes = torch.cat(found.activations).abs().mean(0).tolist()
    quantiles = _score_quantiles(parts, found, request)
    lines: list[RankEffect] = []
    for part in parts:
        for r in range(part.n_nodes):
            i = len(lines)
            line = RankEffect(
                module=part.name,
                layer=None if part.embedding else part.layer,
                rank=r,
                norm_a=float(part.down[r].norm()),
                norm_b=float(part.up[r].norm()),
                activation=sizes[i],
                score=gradient[i],
                score_quantile=float(quantiles[i]),
                integrated=integrated[i],
                effect=next(estimates) if known[i] else None,
                effects=tuple(effects[:, i].tolist()) if known[i] else (),
                contexts=_contexts(work, prompts, found, i, request.contexts),
            )
            lines.append(line)
    return tuple(sorted(lines, key=_by_effect))


def _by_effect(line: RankEffect) -> tuple[bool, float]:
    known = line.effect is not None and line.effect.value is not None
    return not known, -abs(line.effect.value if known else line.score)  # type: ignore[arg-type, union-attr]


def _score_quantiles(
    parts: Sequence[AdapterPart], found: _Measured, request: GeometryRequest
) -> Float[Tensor, " rank"]:
    """How each rank's mean score stands among those of random writes of its norm."""
    quantiles = []
    for i, part in enumerate(parts):
        pull = torch.stack([each[i] for each in found.pulls]).mean(0)
        generator = torch.Generator().manual_seed(request.seed)
        drawn = torch.randn((request.n_random, pull.shape[1]), generator=generator).to(pull)
        drawn = drawn / drawn.norm(dim=1, keepdim=True)
        random = (pull @ drawn.T).abs() * part.up.norm(dim=1, keepdim=True)
        own = (pull * part.up).sum(1).abs()
        quantiles.append((random < own[:, None]).float().mean(1).cpu())
    return torch.cat(quantiles)


def _contexts(
    work: Workspace, prompts: Sequence[ChosenPrompt], found: _Measured, rank: int, keep: int
) -> tuple[Trigger, ...]:
    """Strongest places over all prompts, one of those with an equal token and activation."""
    candidates: list[tuple[float, int, int]] = []
    for number, values in enumerate(found.activations):
        best = values[:, rank].abs().topk(min(keep, len(values))).indices.tolist()
        candidates += [(float(values[p, rank]), number, p + 1) for p in best]
    contexts: dict[tuple[int, float], Trigger] = {}
    for activation, number, position in sorted(candidates, key=lambda c: -abs(c[0])):
        prompt = prompts[number].shown
        row = work.pair.input_ids(prompt).tolist()
        place = row[position], round(activation, 4)
        if len(contexts) == keep or place in contexts:
            continue
        context = context_at(
            work.pair.merged, row, position, activation=activation, document=number
        )
        contexts[place] = Trigger(
            prompt_id=prompt.prompt_id,
            position=position,
            activation=activation,
            marked=context.marked,
        )
    return tuple(contexts.values())


def _agreement(found: _Measured, seed: int) -> list[MethodAgreement]:
    effects = torch.stack(found.effects)
    known = ~effects[0].isnan()
    rows = []
    for method, scores in (("gradient", found.gradient), ("integrated", found.integrated)):
        pairs = [(s[known], e[known]) for s, e in zip(scores, effects, strict=True)]
        each = [agreement(*pair) for pair in pairs]
        intervals = agreement_intervals(pairs, n_bootstrap=DRAWS, seed=seed)
        statistics = {}
        for name in STATISTICS:
            values = [v for one in each if (v := getattr(one, name)) is not None]
            mean = sum(values) / len(values) if values else None
            low, high = intervals[name]
            statistics[name] = Estimate(value=mean, low=low, high=high)
        pooled = agreement(*(torch.cat(side) for side in zip(*pairs, strict=True)))
        rows.append(MethodAgreement(method=method, statistics=statistics, pooled=pooled))
    return rows


def _sweep_points(found: _Measured, seed: int) -> tuple[SweepPoint, ...]:
    contrast, mass = (torch.stack(v).double() for v in (found.contrast, found.mass))
    own = [_over_prompts(values[:, 0], seed) for values in (contrast, mass)]
    random = [values[:, 1:].mean(0) for values in (contrast, mass)]  # adapter x scale
    return tuple(
        SweepPoint(
            scale=scale,
            contrast=own[0][i],
            evil_mass=own[1][i],
            random_contrast=_over_draws(random[0][:, i]),
            random_evil_mass=_over_draws(random[1][:, i]),
        )
        for i, scale in enumerate(SCALES)
    )


def _over_prompts(values: Float[Tensor, "prompt key"], seed: int) -> list[Estimate]:
    """Mean over prompts of each column with its bootstrap interval; none below two prompts."""
    known = torch.ones_like(values, dtype=torch.bool)
    ends = bootstrap_interval(values.double(), known, draws=DRAWS, seed=seed)
    return [
        Estimate(value=mean, low=low if low == low else None, high=high if high == high else None)
        for mean, low, high in zip(
            values.mean(0).tolist(), *(e.tolist() for e in ends), strict=True
        )
    ]


def _over_draws(values: Float[Tensor, " draw"]) -> Estimate:
    low, high = quantile_interval(values)
    return Estimate(value=float(values.mean()), low=low, high=high)


def _frame(lines: Sequence[Alignment]) -> pd.DataFrame:
    """A line per rank and compared layer, largest cosine first."""
    ordered = sorted(lines, key=lambda line: -abs(line.cosine))
    return pd.DataFrame([line.model_dump() for line in ordered], columns=[*Alignment.model_fields])


def geometry_sentence(record: LoraGeometry, lines: Sequence[Alignment]) -> str:
    """What was measured, in one sentence."""
    n, first = len(record.ranks), record.ranks[0]
    m = len(record.modules)
    parts = [f"{n} rank{'s' * (n != 1)} of {m} module{'s' * (m != 1)}"]
    if first.effect is not None:
        parts.append(
            f"dropping rank {first.rank} of {first.module} takes {_number(first.effect)} logits of "
            f"a shift of {_number(record.shift)}"
        )
    spearman = record.agreement[0].statistics["spearman"]
    if spearman.value is not None:
        parts.append(
            f"the gradient agrees with really dropping each rank at Spearman {_number(spearman)}"
        )
    for side, what in (("decoder", "a decoder of its layer"), ("encoder", "an encoder downstream")):
        mine = [line for line in lines if line.side == side]
        if mine:
            best = max(mine, key=lambda line: abs(line.cosine))
            parts.append(
                f"the largest cosine of a write with {what} is {best.cosine:.2f} "
                f"({best.feature_layer}/{best.feature}; random directions {best.random:.2f})"
            )
    return "; ".join(parts) + "."


def _number(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"
