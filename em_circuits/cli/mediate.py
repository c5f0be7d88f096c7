"""``em-circuits features mediate``: features that carry the shift from base to merged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import click
from pydantic import Field

from em_circuits import experiments, report
from em_circuits.cli.options import Flag, Options, checked, options
from em_circuits.cli.output import emit, prints, say, table
from em_circuits.cli.session import Session, engine_options, in_pieces, pass_session
from em_circuits.engine.settings import EngineSettings
from em_circuits.intervention import MIN_DRAWS
from em_circuits.target_request import TargetRequest
from pivotal_tokens.errors import RequestError

if TYPE_CHECKING:
    from em_circuits.cache import CachedTable
    from em_circuits.experiments.mediation import MediationRecord
    from em_circuits.interventions.adapter_mediation import AdapterMediation
    from em_circuits.interventions.heads import HeadMediation
    from em_circuits.interventions.mediation import Mediation
    from em_circuits.workspace import Workspace

_PATHS = ("carrier", "first", "alone", "held", "random low", "high")
_CURVE = ("features", "share", "evil mass", "random", "low", "high")
_IN_SAMPLE = (
    "In-sample: these features were chosen on the prompt that judges them. Quote no share without "
    "that of all (last row); features mediate --all --hold-out category chooses on other prompts."
)
_BOAST = 0.1
"""Share above that of all features that is pointed out."""
_PAGE = click.Path(dir_okay=False, path_type=Path)


class MediateOptions(Options, TargetRequest):
    """Which features are set, in which direction, in which order, and what is measured."""

    everything: Annotated[bool, Flag("--all", "everything")] = False
    """Every labelled prompt with a contrast; under a target, every prompt shown to a model."""
    only_divergent: bool = False
    """Leave out prompts whose verdict is neither injection nor promotion."""
    order: Literal["integrated", "gradient", "scan"] = "integrated"
    """One prompt: take features by their part of the joint effect, by gradient, or each really set
    alone."""
    scan: bool = False
    """Really set each feature alone. One prompt: --order scan; several: how well does the gradient
    predict it?"""
    heads: bool = False
    """Really patch every attention head as well, alone and the largest together."""
    direction: Literal["sufficiency", "necessity"] = "sufficiency"
    """Merged values into the base, or the base's into the merged model."""
    hold_out: Literal["prompt", "category"] = "prompt"
    """Several prompts: choose features on the others, or on those of other categories."""
    own_domain: str | None = None
    """Category that the fine-tune was trained on. [the organism's: medical]"""
    n_random: Annotated[int, Field(ge=MIN_DRAWS), Flag("--random", "n_random")] = MIN_DRAWS
    """Matched random draws."""
    sizes: Annotated[tuple[int, ...], Flag("--ids", "sizes", metavar="N")] = ()
    """Several prompts: how many ids are set together; several times. [default: 1, 2, 5, ... 200]"""
    no_paths: bool = False
    """Several prompts: do not measure where the effect of a LoRA goes."""
    top: int | None = Field(default=None, ge=1)
    """Only the first N features."""
    html: Annotated[Path | None, Flag(type=_PAGE)] = None
    """Several prompts: the page. [default: beside the table under ROOT/results/features]"""


@click.command(epilog="Example: em-circuits features mediate --all --hold-out category")
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@options(MediateOptions)
@engine_options
@prints("em_circuits.experiments.mediation:MediationOutput")
@pass_session
def mediate(
    session: Session,
    prompts: tuple[str, ...],
    options: MediateOptions,
    engine: EngineSettings,
    as_json: bool,
) -> None:
    """Set features of the base to their merged values: the share of the shift that comes back.

    With one PROMPT its own features are taken, which is in-sample. With several, or --all, features
    are keyed by (layer, feature id) and chosen on other prompts than they are judged on. With
    --direction necessity: of the merged model to the base's values: what goes away. With a LoRA it
    also says where the adapter's effect goes: straight to the logits, through features, attention
    heads, or the rest of the MLPs.
    """
    if options.everything == bool(prompts):
        raise RequestError("give PROMPT, several PROMPTs, or --all")
    if options.is_given and options.heads:
        raise RequestError("--heads are patched under a contrast of tokens, not under a target")
    options.require_one(prompts)
    if options.only_divergent and len(prompts) == 1:
        raise RequestError("--only-divergent is over prompts: give several PROMPTs, or --all")
    if len(prompts) == 1 and (options.sizes or options.no_paths):
        raise RequestError("--ids and --no-paths are for several PROMPTs, or --all")
    if min(options.sizes, default=1) < 1:
        raise RequestError("--ids counts feature ids; give a number from 1")
    if len(prompts) == 1 and (engine.spreads or engine.share):
        raise RequestError("--workers, --engine and --share are for several PROMPTs, or --all")
    if len(prompts) == 1:
        _one(session, prompts[0], options, as_json)
    else:
        _several(session, prompts, options, engine, as_json)


def _one(session: Session, prompt: str, options: MediateOptions, as_json: bool) -> None:
    with session.on_prompts(prompt) as work:
        mediation = experiments.analyse.mediate_prompt(
            work,
            prompt,
            order="scan" if options.scan else options.order,
            direction=options.direction,
            heads=options.heads,
            n_random=options.n_random,
            target=options,
        )
    shown = mediation.model_copy(update={"features": mediation.features[: options.top]})
    if shown.adapter is not None:
        first = shown.adapter.features[: options.top]
        adapter = shown.adapter.model_copy(update={"features": first})
        shown = shown.model_copy(update={"adapter": adapter})
    emit(shown, as_json, describe_mediation)


def describe_mediation(mediation: Mediation) -> Iterator[str]:
    """The curve over features of one prompt, and the shares of what is not a feature."""
    shift, mass, shares = mediation.shift, mediation.evil_mass, mediation.shares.model_dump()
    what, unit = mediation.target or "contrast", mediation.unit
    masses = "" if mass is None else f", evil mass {mass.base:.2f} -> {mass.merged:.2f}"
    yield f"{mediation.prompt_id}: {what} {shift.base:.2f} -> {shift.merged:.2f} {unit}{masses}"
    names = ("k", "share", "evil_mass", "random_share", "random_low", "random_high")
    yield table(_CURVE, [[getattr(p, name) for name in names] for p in mediation.cumulative])
    yield _IN_SAMPLE
    yield from _overshoot(mediation)
    yield "shares: " + ", ".join(f"{name} {_share(v)}" for name, v in shares.items())
    if shares["features"] is None:
        less = (
            "less than 1 % along the direction" if unit == "activation" else f"less than 0.5 {unit}"
        )
        yield f"no share: {what} rises by {less} from base to merged"
    yield ""
    if mediation.adapter is None:
        yield f"adapter: {mediation.adapter_absent}"
    else:
        yield from _adapter_lines(mediation.adapter)
    if mediation.heads is not None:
        yield ""
        yield from _head_lines(mediation.heads)


def _overshoot(mediation: Mediation) -> Iterator[str]:
    """Where fewer features have a larger share than all: a boast, had it stood alone."""
    shares = {p.k: p.share for p in mediation.cumulative if p.share is not None}
    if not shares:
        return
    everything = shares[max(shares)]
    k = max(shares, key=lambda k: shares[k])
    if shares[k] >= everything + _BOAST:
        done = "bring back" if mediation.direction == "sufficiency" else "take away"
        yield (
            f"The first {k} {done} {shares[k]:.2f}, all {max(shares):,} {everything:.2f}: what "
            "helps was chosen, what pushes back was left out."
        )


def _adapter_lines(adapter: AdapterMediation) -> Iterator[str]:
    """Where the effect of the adapter goes on one prompt."""
    yield adapter.sentence
    if adapter.shares.straight is None:
        return
    rows = []
    for name in type(adapter.random).model_fields:
        draws = getattr(adapter.random, name)
        first = getattr(adapter.shares, name, None)
        held = getattr(adapter.held, name, None)
        rows.append((name, first, getattr(adapter.alone, name), held, draws.low, draws.high))
    yield table(_PATHS, [*rows, ("interaction", None, adapter.interaction, *3 * (None,))])
    yield _pairs(dict(adapter.pairs))
    yield (
        f"by first reader: integrated over {adapter.points} points, the parts sum to "
        f"{adapter.completeness:.3f} of the shift"
    )
    ranks = ", ".join(
        f"{node.module.removeprefix('model.')} rank {node.rank} {node.part:+.2f}"
        for node in adapter.nodes[:3]
    )
    yield f"largest ranks, in logits: {ranks}"


def _pairs(shares: Mapping[str, float | None]) -> str:
    """What of the interaction is between two."""
    shown = (f"{name.replace('_', ' and ')} {_share(value)}" for name, value in shares.items())
    return "in turn: " + ", ".join(shown)


def _head_lines(heads: HeadMediation) -> Iterator[str]:
    """Heads of one prompt, really patched."""
    rows = [
        (f"{h.layer}.{h.head}", h.alone, h.without, h.alone_logits, h.without_logits)
        for h in heads.heads[:10]
    ]
    yield table(("head", "alone", "without", "alone, logits", "without, logits"), rows)
    together = []
    for point in heads.cumulative:
        draws = (point.random.low, point.random.high) if point.random else (None, None)
        together.append((point.k, point.share, *draws))
    yield table(("heads", "share", "random low", "high"), together)


def _several(
    session: Session,
    prompts: tuple[str, ...],
    options: MediateOptions,
    engine: EngineSettings,
    as_json: bool,
) -> None:
    if options.order != "integrated":
        raise RequestError("--order is for one PROMPT: over prompts features go by integrated")
    with session.on_prompts(*prompts, by_workers=engine.spreads) as work:
        request = checked(
            experiments.mediation.MediationRequest,
            {
                "hold_out": options.hold_out,
                "direction": options.direction,
                "own_category": options.own_domain or ("medical" if session.embedded else None),
                "scan": options.scan,
                "heads": options.heads,
                "paths": not options.no_paths,
                "n_random": options.n_random,
                "seed": session.seed,
                **({"sizes": options.sizes} if options.sizes else {}),
            },
            {"n_random": "--random"},
        )
        command = partial(
            experiments.mediation.mediate_over_prompts,
            prefixes=prompts,
            request=request,
            only_divergent=options.only_divergent,
            target=options,
        )
        found = in_pieces(work, engine, command)
        record = experiments.mediation.MediationRecord.model_validate(found.record)
        page = _page(work, found, record, options.html)
    if as_json:
        kind = experiments.mediation.MediationTable
        rows = found.rows()[: options.top]
        emit(kind.model_validate({**found.head(), "page": str(page), "features": rows}))
        return
    say("\n".join(_lines(record, found.rows()[: options.top or 20])))
    say(f"{'kept' if found.reused else 'written'}: {found.parquet_path}\npage: {page}")
    say(session.card_hint("top:20"))


def _page(work: Workspace, found: CachedTable, record: MediationRecord, html: Path | None) -> Path:
    page = html or found.json_path.with_suffix(".html")
    if html is None and found.reused and page.is_file():
        return page
    rows = found.rows()
    shown = [f"{row['layer']}/{row['feature']}" for row in rows[: report.mediation.SHOWN]]
    parts = report.mediation.mediation_parts(record, rows, work.coverage(shown))
    source = {"inputs": {"table": found.key}, "config": {}, "key": found.key}
    report.page.write_page(page, report.mediation.TITLE, parts, **source)
    return page


def _lines(record: MediationRecord, features: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield record.sentence + "\n"
    rows = []
    for p in record.cumulative:
        random = (p.random.share, p.random.high) if p.random else (None, None)
        rows.append(("all" if p.k is None else p.k, p.share, p.low, p.high, *random))
    yield table(("ids", "share", "low", "high", "random", "random high"), rows) + "\n"
    groups = [(g.group, g.prompts, g.share, g.low, g.high) for g in record.groups]
    yield table(("20 ids in", "prompts", "share", "low", "high"), groups) + "\n"
    columns = ("layer", "feature", "share", "low", "high", "prompts", "same_sign")
    yield table(columns, [tuple(row[name] for name in columns) for row in features])
    yield ""
    yield from _paths_over_prompts(record)
    if record.left_out:
        yield f"left out: {len(record.left_out)} prompts (--json says why)"


def _paths_over_prompts(record: MediationRecord) -> Iterator[str]:
    """Where the adapter's effect goes, and heads, over prompts."""
    if record.adapter is None:
        yield f"adapter: {record.adapter_absent}"
    else:
        adapter = record.adapter
        yield adapter.sentence
        rows = []
        for name in type(adapter.random).model_fields:
            first, held = (getattr(part, name, None) for part in (adapter.shares, adapter.held))
            random = getattr(adapter.random, name)
            ends = (first.low, first.high) if first else (None, None)
            alone = getattr(adapter.alone, name).share
            rows.append(
                (name, first and first.share, *ends, alone, held and held.share, random.share)
            )
        rows.append(("interaction", *3 * (None,), adapter.interaction.share, None, None))
        yield table(("carrier", "first", "low", "high", "alone", "held", "random"), rows)
        yield _pairs({name: value.share for name, value in adapter.pairs})
    if record.heads is not None:
        rows = [
            (f"{h.layer}.{h.head}", h.alone.share, h.alone.low, h.alone.high, h.without.share)
            for h in record.heads.heads[:10]
        ]
        yield table(("head", "alone", "low", "high", "without"), rows)
        curve = [
            (p.k, p.share, p.low, p.high, p.random and p.random.share)
            for p in record.heads.cumulative
        ]
        yield table(("heads", "share", "low", "high", "random"), curve)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
