"""Which features carry the misalignment, over labelled prompts that did not choose them?

    table = carriers_over_prompts(work, [], CarriersRequest(hold_out="category"))
    table.record["sentence"], table.rows()[:10]

The Parquet has a line per feature id; everything else stands in the JSON. See
`em_circuits.interventions.carriers` for how the numbers come about.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field

from em_circuits.cache import CachedTable, cached_table
from em_circuits.experiments.aggregate import ChosenPrompt, choose_prompts
from em_circuits.experiments.analyse import input_ids, token_groups
from em_circuits.interventions.carriers import (
    SIZES,
    HoldOut,
    Moved,
    Subject,
    carriers,
    pooled,
)
from em_circuits.interventions.mediation_result import Direction, Shares
from em_circuits.statistics import bootstrap_interval, quantile_interval
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import RequestError

FORMULA = 1
HEADLINE = 20
"""Feature ids of the headline figure."""
_COMPONENTS = ("features", "errors", "attention", "together", "interaction")


class CarriersRequest(BaseModel):
    """What is asked of the prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hold_out: HoldOut = "prompt"
    """Choose on the other prompts, or on prompts of other categories."""
    direction: Direction = "sufficiency"
    own_category: str | None = None
    """The fine-tune's own domain; the others are reported as unseen."""
    scan: bool = False
    """Compare the gradient with really setting each feature alone."""
    n_random: int = Field(default=20, ge=20)
    seed: int = 0


def carriers_over_prompts(
    work: Workspace,
    prefixes: Sequence[str],
    request: CarriersRequest,
) -> CachedTable:
    """Mediation over prompts, features chosen elsewhere; or the kept table of equal inputs.

    Args:
        work: Models and store.
        prefixes: Prompt ids or unique prefixes; none for every labelled prompt with a contrast.
        request: How features are chosen and which model is treated.

    Raises:
        RequestError: If no prompt will do, or one that was named.
        WorkFailed: If fewer than two prompts have a shift.
    """
    found, left_out = choose_prompts(work, prefixes, work.pair.key, [])
    chosen = [item for item in found if item.prompt.token_ids is not None]
    left_out += [
        {"prompt_id": item.prompt.prompt_id, "reason": "never shown to a model"}
        for item in found
        if item.prompt.token_ids is None
    ]
    if not chosen:
        raise RequestError("no labelled prompt was shown to a model; run em-circuits label first")
    inputs = {
        "formula": FORMULA,
        "pair": work.pair.key,
        **request.model_dump(mode="json"),
        "prompts": [item.identity() for item in chosen],
    }

    def compute() -> tuple[dict[str, Any], pd.DataFrame]:
        work.require_healthy(chosen[0].prompt)
        moved, small = carriers(
            work.pair,
            [_subject(work, item) for item in chosen],
            hold_out=request.hold_out,
            direction=request.direction,
            scan=request.scan,
            n_random=request.n_random,
            seed=request.seed,
            progress=work.progress,
        )
        none = [{"prompt_id": s.prompt_id, "reason": "the shift is too small"} for s in small]
        return _summed(moved, none, request)

    table = cached_table(work.results / "features", "carriers", inputs, compute)
    table.record["left_out"] = [*left_out, *table.record["left_out"]]
    return table


def _subject(work: Workspace, item: ChosenPrompt) -> Subject:
    prompt = item.prompt
    groups = token_groups(item.labels)
    return Subject(prompt.prompt_id, prompt.category, input_ids(work, prompt), groups)


def _summed(
    moved: Sequence[Moved], left_out: list[dict[str, str]], request: CarriersRequest
) -> tuple[dict[str, Any], pd.DataFrame]:
    seed = request.seed
    curve = [_point(moved, k, seed) for k in (*SIZES, None)]
    record: dict[str, Any] = {
        "direction": request.direction,
        "hold_out": request.hold_out,
        "own_category": request.own_category,
        "prompts": [_prompt_line(item, request.own_category) for item in moved],
        "left_out": left_out,
        "cumulative": [point for point in curve if point is not None],
        "groups": _groups(moved, request),
        "layers": [
            _share([m.layers[i] for m in moved], moved, seed) for i in range(len(moved[0].layers))
        ],
        "shares": {
            name: _share([_component(m.shares, name) for m in moved], moved, seed)
            for name in _COMPONENTS
        },
        "own": _share([m.own / m.shift for m in moved], moved, seed),
        "gradient_predicts_scan": _pearsons(moved),
    }
    record["sentence"] = sentence(record)
    return record, pd.DataFrame(_features(moved, seed))


def _point(moved: Sequence[Moved], k: int | None, seed: int) -> dict[str, Any] | None:
    known = [m for m in moved if m.at(k) is not None]
    if not known:
        return None
    share = _share([m.share(k) for m in known], known, seed)
    draws = [m.random_shares(k) for m in known]
    random = None
    if k is not None and all(d is not None for d in draws):
        shift = torch.tensor([m.shift for m in known]).double()
        per_draw = (torch.stack(draws) * shift[:, None]).sum(0) / shift.sum()  # type: ignore[arg-type]
        low, high = quantile_interval(per_draw)
        random = {"share": float(per_draw.mean()), "low": low, "high": high}
    mass = [float(m.mass[m.at(k)]) for m in known]
    return {
        "k": k,
        "prompts": len(known),
        **share,
        "evil_mass": sum(mass) / len(mass),
        "random": random,
    }


def _share(values: Sequence[float | None], moved: Sequence[Moved], seed: int) -> dict[str, Any]:
    found = pooled(moved, values, seed=seed)
    if found is None:
        return {"share": None, "low": None, "high": None}
    share, interval = found
    low, high = interval or (None, None)
    return {"share": share, "low": low, "high": high}


def _component(shares: Shares, name: str) -> float | None:
    return shares.to_json()[name]


def _prompt_line(item: Moved, own: str | None) -> dict[str, Any]:
    effects, category = item.effects, item.effects.subject.category
    return {
        "prompt_id": effects.subject.prompt_id,
        "category": category,
        "seen": None if own is None else category == own,
        "shift": item.shift,
        "evil_mass": {"base": effects.evil_mass.base, "merged": effects.evil_mass.merged},
        "share": item.share(HEADLINE),
        "own": item.own / item.shift,
        "features": item.share(None),
        "gradient_predicts_scan": effects.scan_pearson,
    }


def _groups(moved: Sequence[Moved], request: CarriersRequest) -> list[dict[str, Any]]:
    """The headline share of the own domain, of the unseen ones together, and of each category."""
    parts: list[tuple[str, list[Moved]]] = []
    own = request.own_category
    if own is not None:
        parts.append((f"own domain ({own})", [m for m in moved if _category(m) == own]))
        parts.append(("unseen domains", [m for m in moved if _category(m) != own]))
    names = sorted({_category(m) or "none" for m in moved})
    parts += [(name, [m for m in moved if (_category(m) or "none") == name]) for name in names]
    found = []
    for name, part in parts:
        point = _point(part, HEADLINE, request.seed) if part else None
        if point is not None:
            found.append({"group": name, **point})
    return found


def _category(item: Moved) -> str | None:
    return item.effects.subject.category


def _pearsons(moved: Sequence[Moved]) -> dict[str, float] | None:
    values = [m.effects.scan_pearson for m in moved if m.effects.scan_pearson is not None]
    return {"mean": sum(values) / len(values), "least": min(values)} if values else None


def _features(moved: Sequence[Moved], seed: int) -> dict[str, list[Any]]:
    keys = sorted({key for m in moved for key in m.effects.share})
    values = torch.zeros(len(moved), len(keys), dtype=torch.float64)
    changes = torch.zeros_like(values, dtype=torch.bool)
    number = {key: i for i, key in enumerate(keys)}
    for row, item in enumerate(moved):
        for key, value in item.effects.share.items():
            values[row, number[key]] = value
            changes[row, number[key]] = True
    mean = values.mean(0)
    low, high = bootstrap_interval(values, torch.ones_like(changes), draws=1000, seed=seed)
    agree = ((values.sign() == mean.sign()) & changes).sum(0) / changes.sum(0)
    order = mean.argsort(descending=True, stable=True).tolist()

    def column(tensor: torch.Tensor) -> list[Any]:
        return [None if v != v else v for v in (tensor[i].item() for i in order)]

    return {
        "layer": [keys[i][0] for i in order],
        "feature": [keys[i][1] for i in order],
        "share": column(mean),
        "low": column(low),
        "high": column(high),
        "prompts": column(changes.sum(0)),
        "same_sign": column(agree),
    }


def sentence(record: dict[str, Any]) -> str:
    """What was measured, in one sentence."""
    by_k = {point["k"]: point for point in record["cumulative"]}
    point = by_k.get(HEADLINE) or record["cumulative"][0]
    put = {
        "sufficiency": "set in the base to their merged values, bring back",
        "necessity": "set in the merged model to the base's values, take away",
    }[record["direction"]]
    elsewhere = "categories" if record["hold_out"] == "category" else "prompts"
    parts = [
        f"{point['k']} feature ids, chosen on other {elsewhere}, {put} {_percent(point)} of the "
        f"shift over {point['prompts']} prompts"
    ]
    if point["random"] is not None:
        parts.append(f"matched random ids {point['random']['share']:.0%}")
    parts.append(f"all changed features {_percent(by_k[None])}")
    shares = record["shares"]
    parts.append(f"transcoder errors {_percent(shares['errors'])}")
    parts.append(f"attention outputs {_percent(shares['attention'])}")
    peak = max(record["cumulative"], key=lambda p: p["share"])
    if peak["k"] is not None and peak["share"] > by_k[None]["share"] + 0.01:
        parts.append(
            f"the curve peaks at {peak['k']} ids ({peak['share']:.0%}): those after them push back"
        )
    return "; ".join(parts) + "."


def _percent(value: dict[str, Any]) -> str:
    if value["share"] is None:
        return "no known share"
    if value["low"] is None:
        return f"{value['share']:.0%}"
    return f"{value['share']:.0%} ({value['low']:.0%} to {value['high']:.0%})"
