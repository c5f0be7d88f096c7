"""Mediation over labelled prompts, by features that were chosen on other prompts.

    table = mediate_over_prompts(work, [], MediationRequest(hold_out="category"))
    MediationRecord.model_validate(table.record).sentence, table.rows()[:10]

The Parquet has a line per feature id; everything else stands in the JSON. See
`em_circuits.interventions.patching_across_prompts` for how the numbers come about.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from pydantic import Field

from em_circuits.cache import CachedTable, TableHead, table_in_pieces
from em_circuits.contrast import Contrast
from em_circuits.experiments.adapter_mediation import (
    AdapterOverPrompts,
    HeadsOverPrompts,
    adapter_over_prompts,
    heads_over_prompts,
)
from em_circuits.experiments.aggregate import choose_shown, choose_targets
from em_circuits.experiments.cases import UnusedPrompt
from em_circuits.experiments.shares import Share
from em_circuits.intervention import MIN_DRAWS
from em_circuits.interventions.mediation import Mediation
from em_circuits.interventions.patching import Direction
from em_circuits.interventions.patching_across_prompts import (
    SIZES,
    HoldOut,
    PromptResult,
    Subject,
    patch_across_prompts,
    pooled,
)
from em_circuits.pieces import KeepTensors
from em_circuits.statistics import bootstrap_interval, quantile_interval
from em_circuits.target import Target
from em_circuits.target_request import NO_TARGET, TargetRequest
from em_circuits.workspace import Workspace
from pivotal_tokens.artefacts import finite
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen, Prompt

FORMULA = 4
HEADLINE = 20
"""Feature ids of the headline figure."""
COMPONENTS = ("features", "errors", "attention", "together", "interaction")


class MediationRequest(Frozen):
    """Settings of a mediation over prompts."""

    hold_out: HoldOut = "prompt"
    """Choose on the other prompts, or on prompts of other categories."""
    direction: Direction = "sufficiency"
    own_category: str | None = None
    """The fine-tune's own domain; the others are reported as unseen."""
    scan: bool = False
    """Compare the gradient with really setting each feature alone."""
    heads: bool = False
    """Really patch every attention head."""
    sizes: tuple[int, ...] = SIZES
    """Feature ids set together; the headline's are measured in any case."""
    paths: bool = True
    """Say where the effect of a LoRA goes."""
    n_random: int = Field(default=MIN_DRAWS, ge=MIN_DRAWS)
    seed: int = 0


class CurvePoint(Share):
    """The share that k feature ids carry together; None is all that changed."""

    k: int | None
    prompts: int
    evil_mass: float | None
    """Null for a target that has none."""
    random: Share | None
    """That of matched random ids."""


class GroupShare(CurvePoint):
    """The headline share of some prompts."""

    group: str


class MassOfModels(Frozen):
    """Evil mass of both un-steered models."""

    base: float
    merged: float


class PromptShares(Frozen):
    """One prompt."""

    prompt_id: str
    category: str | None
    seen: bool | None
    """Of the fine-tune's own domain; None where that is not known."""
    shift: float
    evil_mass: MassOfModels | None
    """Null for a target that has none."""
    share: float | None
    own: float
    """By the prompt's own top 20: in-sample."""
    features: float | None
    gradient_predicts_scan: float | None


class Correlations(Frozen):
    """Of the gradient with really setting each feature alone, over prompts."""

    mean: float
    least: float


class MediationRecord(Frozen):
    """The JSON beside the table of features."""

    direction: Direction
    hold_out: HoldOut
    own_category: str | None
    target: str | None = None
    """What stands for the contrast, where it is not one of next tokens; of several prompts with
    targets of their own, the first one's."""
    prompts: tuple[PromptShares, ...]
    left_out: tuple[UnusedPrompt, ...]
    cumulative: tuple[CurvePoint, ...]
    groups: tuple[GroupShare, ...]
    layers: tuple[Share, ...]
    shares: dict[str, Share]
    """By component."""
    own: Share
    gradient_predicts_scan: Correlations | None
    sentence: str = ""
    adapter: AdapterOverPrompts | None = None
    """Where the effect of the LoRA goes; null where `adapter_absent` says why."""
    adapter_absent: str | None = None
    heads: HeadsOverPrompts | None = None
    """Only if asked for."""


class TableFeature(Share):
    """A feature id by its mean share of the shift while all move together."""

    layer: int
    feature: int
    prompts: int
    """On which it changes."""
    same_sign: float
    """Share of them in which it pushes as in the mean."""


class MediationTable(TableHead, MediationRecord):
    """What carries the shift over prompts; with ``--all`` or several prompts."""

    page: str
    features: tuple[TableFeature, ...]


MediationOutput = Mediation | MediationTable


def mediate_over_prompts(
    work: Workspace,
    prefixes: Sequence[str],
    request: MediationRequest,
    *,
    only_divergent: bool = False,
    target: TargetRequest = NO_TARGET,
) -> CachedTable:
    """Mediation over prompts, features chosen elsewhere; or the stored table of equal inputs.

    No prefix means every labelled prompt with a contrast; `only_divergent` leaves the others out. A
    target is built for each prompt and stands in place of the contrast.

    Raises:
        RequestError: If no prompt will do, or one that was named.
        WorkFailed: If fewer than two prompts have a shift.
    """
    if target.is_given and request.heads:
        raise RequestError("heads are patched under a contrast of tokens, not under a target")
    chosen, identities, left_out = _chosen(work, prefixes, target, only_divergent)
    own = one.name if isinstance(one := chosen[0][1], Target) else None
    inputs = {
        "formula": FORMULA,
        "pair": work.pair_key,
        **_asked(request),
        "prompts": identities,
    }

    def compute(keep: KeepTensors) -> tuple[dict[str, Any], pd.DataFrame]:
        work.require_healthy(work.store.prompts.get(chosen[0][0].prompt_id))
        subjects = [
            Subject(prompt.prompt_id, prompt.category, work.pair.input_ids(prompt), wanted)
            for prompt, wanted in chosen
        ]
        results, small = patch_across_prompts(
            work.pair,
            subjects,
            hold_out=request.hold_out,
            direction=request.direction,
            scan=request.scan,
            sizes=_sizes(request),
            n_random=request.n_random,
            seed=request.seed,
            keep=keep,
        )
        reason = "the shift is too small"
        none = tuple(UnusedPrompt(prompt_id=s.prompt_id, reason=reason) for s in small)
        record = _record(results, none, request)
        more = _paths_and_heads(work, results, request, keep)
        work.portion.do({}, [])  # no other pieces follow
        record = record.model_copy(update={**more, "target": own})
        return record.model_dump(mode="json"), _features(results, request.seed)

    folder = work.results / "features"
    table = table_in_pieces(folder, "carriers", inputs, compute, work.portion, work.progress)
    table.record["left_out"] = [*(one.model_dump() for one in left_out), *table.record["left_out"]]
    return table


def _asked(request: MediationRequest) -> dict[str, Any]:
    """What names a result: defaults that came later stand in no key."""
    later = {"sizes": SIZES, "paths": True}
    unchanged = {name for name, default in later.items() if getattr(request, name) == default}
    return request.model_dump(mode="json", exclude=unchanged)


def _sizes(request: MediationRequest) -> list[int]:
    return sorted({*request.sizes, HEADLINE})


def _paths_and_heads(
    work: Workspace, results: Sequence[PromptResult], request: MediationRequest, keep: KeepTensors
) -> dict[str, Any]:
    """The fields of a record on the adapter's paths and on heads."""
    subjects = [item.effects.subject for item in results]
    drawn: dict[str, Any] = {"n_random": request.n_random, "seed": request.seed}
    adapter: AdapterOverPrompts | None = None
    absent: str | None = "its paths were not asked for"
    if isinstance(subjects[0].contrast, Target):
        absent = "its paths are told under a contrast of next tokens, not under a target"
    elif request.paths:
        adapter, absent = adapter_over_prompts(work.pair, subjects, **drawn, keep=keep)
    heads = None
    if request.heads:
        heads = heads_over_prompts(
            work.pair,
            subjects,
            hold_out=request.hold_out,
            direction=request.direction,
            **drawn,
            keep=keep,
        )
    return {"adapter": adapter, "adapter_absent": absent, "heads": heads}


def _chosen(
    work: Workspace, prefixes: Sequence[str], target: TargetRequest, only_divergent: bool
) -> tuple[list[tuple[Prompt, Contrast | Target]], list[dict[str, Any]], list[UnusedPrompt]]:
    """Prompts with what is measured on each, what names them in a key, and those left out."""
    found: list[tuple[Prompt, Contrast | Target]]
    if target.is_given:
        targets, left_out = choose_targets(work, prefixes, target, only_divergent=only_divergent)
        found = [(item.prompt, item.target) for item in targets]
        identities = [item.identity() for item in targets]
    else:
        shown, left_out = choose_shown(work, prefixes, only_divergent=only_divergent)
        found = [(item.shown, item.contrast) for item in shown]
        identities = [item.identity() for item in shown]
    return found, identities, left_out


def _record(
    results: Sequence[PromptResult], left_out: tuple[UnusedPrompt, ...], request: MediationRequest
) -> MediationRecord:
    def share(values: Sequence[float | None]) -> Share:
        return _share(values, results, request.seed)

    curve = [_point(results, k, request.seed) for k in (*_sizes(request), None)]
    record = MediationRecord(
        direction=request.direction,
        hold_out=request.hold_out,
        own_category=request.own_category,
        prompts=tuple(_prompt(item, request.own_category) for item in results),
        left_out=left_out,
        cumulative=tuple(point for point in curve if point is not None),
        groups=tuple(_groups(results, request)),
        layers=tuple(
            share([item.layers[i] for item in results]) for i in range(len(results[0].layers))
        ),
        shares={
            name: share([getattr(item.shares, name) for item in results]) for name in COMPONENTS
        },
        own=share([item.own / item.shift for item in results]),
        gradient_predicts_scan=_correlations(results),
    )
    return record.model_copy(update={"sentence": mediation_sentence(record)})


def _share(values: Sequence[float | None], results: Sequence[PromptResult], seed: int) -> Share:
    found = pooled(results, values, seed=seed)
    if found is None:
        return Share(share=None, low=None, high=None)
    low, high = found[1] or (None, None)
    return Share(share=found[0], low=low, high=high)


def _point(results: Sequence[PromptResult], k: int | None, seed: int) -> CurvePoint | None:
    """The share of k ids over the prompts that have so many."""
    with_k = [item for item in results if item.at(k) is not None]
    if not with_k:
        return None
    random, draws = None, [item.random_shares(k) for item in with_k]
    if k is not None and all(draw is not None for draw in draws):
        shift = torch.tensor([item.shift for item in with_k]).double()
        per_draw = (torch.stack(draws) * shift[:, None]).sum(0) / shift.sum()  # type: ignore[arg-type]
        low, high = quantile_interval(per_draw)
        random = Share(share=float(per_draw.mean()), low=low, high=high)
    share = _share([item.share(k) for item in with_k], with_k, seed)
    mass = [float(item.mass[item.at(k)]) for item in with_k]
    return CurvePoint(
        **share.model_dump(),
        k=k,
        prompts=len(with_k),
        evil_mass=finite(sum(mass) / len(mass)),
        random=random,
    )


def _prompt(item: PromptResult, own: str | None) -> PromptShares:
    effects, category = item.effects, item.effects.subject.category
    mass = effects.evil_mass
    return PromptShares(
        prompt_id=effects.subject.prompt_id,
        category=category,
        seen=None if own is None else category == own,
        shift=item.shift,
        evil_mass=None if mass is None else MassOfModels(base=mass.base, merged=mass.merged),
        share=item.share(HEADLINE),
        own=item.own / item.shift,
        features=item.share(None),
        gradient_predicts_scan=effects.scan_pearson,
    )


def _groups(results: Sequence[PromptResult], request: MediationRequest) -> list[GroupShare]:
    """The headline share of the own domain, of the unseen ones together, and of each category."""
    categories = [item.effects.subject.category for item in results]
    parts: list[tuple[str, list[bool]]] = []
    if (own := request.own_category) is not None:
        parts.append((f"own domain ({own})", [c == own for c in categories]))
        parts.append(("unseen domains", [c != own for c in categories]))
    names = sorted({c or "none" for c in categories})
    parts += [(name, [(c or "none") == name for c in categories]) for name in names]
    groups = []
    for name, members in parts:
        part = [item for item, inside in zip(results, members, strict=True) if inside]
        point = _point(part, HEADLINE, request.seed) if part else None
        if point is not None:
            groups.append(GroupShare(**point.model_dump(), group=name))
    return groups


def _correlations(results: Sequence[PromptResult]) -> Correlations | None:
    values = [p for item in results if (p := item.effects.scan_pearson) is not None]
    return Correlations(mean=sum(values) / len(values), least=min(values)) if values else None


def _features(results: Sequence[PromptResult], seed: int) -> pd.DataFrame:
    """A line per feature id by mean share; one that does not change on a prompt has none there."""
    shares = pd.DataFrame([item.effects.share for item in results])
    shares = shares.reindex(sorted(shares.columns), axis=1)
    changes = torch.tensor(shares.notna().to_numpy())
    values = torch.tensor(shares.fillna(0.0).to_numpy())
    mean = values.mean(0)
    low, high = bootstrap_interval(values, torch.ones_like(changes), draws=1000, seed=seed)
    same_sign = ((values.sign() == mean.sign()) & changes).sum(0) / changes.sum(0)
    frame = pd.DataFrame(
        {
            "layer": [key[0] for key in shares.columns],
            "feature": [key[1] for key in shares.columns],
            "share": mean.numpy(),
            "low": low.numpy(),
            "high": high.numpy(),
            "prompts": changes.sum(0).numpy(),
            "same_sign": same_sign.double().numpy(),
        }
    )
    return frame.sort_values("share", ascending=False, kind="stable", ignore_index=True)


def mediation_sentence(record: MediationRecord) -> str:
    """What was measured, in one sentence."""
    by_k = {point.k: point for point in record.cumulative}
    point, whole = by_k.get(HEADLINE) or record.cumulative[0], by_k[None]
    put = {
        "sufficiency": "set in the base to their merged values, bring back",
        "necessity": "set in the merged model to the base's values, take away",
    }[record.direction]
    elsewhere = "categories" if record.hold_out == "category" else "prompts"
    parts = [
        f"{point.k} feature ids, chosen on other {elsewhere}, {put} {point} of the "
        f"shift over {point.prompts} prompts"
    ]
    if point.random is not None:
        parts.append(f"matched random ids {point.random.share:.0%}")
    parts.append(f"the {HEADLINE} largest chosen on the prompt itself {record.own}: a boast")
    parts.append(f"all changed features {whole}")
    parts.append(f"errors {record.shares['errors']}")
    parts.append(f"attention outputs {record.shares['attention']}")
    peak = max(record.cumulative, key=lambda p: p.share or 0.0)
    if peak.k is not None and (peak.share or 0.0) > (whole.share or 0.0) + 0.01:
        parts.append(
            f"the curve peaks at {peak.k} ids ({peak.share:.0%}): those after them push back"
        )
    return "; ".join(parts) + "."
