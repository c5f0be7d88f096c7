"""``em-circuits judge``: judges measured against people, and how their endpoints are asked."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
from pydantic import Field

from em_circuits import report as pages
from em_circuits.cli.judge_options import (
    JudgeOptions,
    llm_options,
    open_model_judge,
    open_offline_judge,
)
from em_circuits.cli.labels import describe_comparison
from em_circuits.cli.options import Flag, Options, OptionSet, options
from em_circuits.cli.output import emit, one_line, prints, say, table
from em_circuits.cli.session import Session, pass_session
from pivotal_tokens.artefacts import write_json, write_provenance
from pivotal_tokens.errors import RequestError
from pivotal_tokens.judge import JudgeSpec
from pivotal_tokens.judge.report import JudgeReport, judge_report
from pivotal_tokens.llm.capabilities import Capabilities
from pivotal_tokens.schema import Frozen, Prompt

if TYPE_CHECKING:
    from em_circuits.labelling.panel import JudgePanel
    from pivotal_tokens.store import Store

_SHOWN = 10


class ReportOptions(Options):
    """Which judges are measured, and where the report goes."""

    judge: Annotated[str | None, Flag("--judge", "name", metavar="ID")] = None
    """Only judges whose id begins so."""
    pair: Annotated[str | None, Flag(metavar="KEY")] = None
    """Only this pair of models. [default: all]"""
    resamples: int = Field(default=2000, ge=0)
    """Bootstrap draws of the intervals; 0 for none."""
    out: Annotated[Path | None, Flag(type=click.Path(file_okay=False, path_type=Path))] = None
    """Where report.json and report.html go. [default: ROOT/results/judge]"""


@click.group()
def judge() -> None:
    """Measure judges against people; show how they are asked."""


@judge.command(epilog="Example: em-circuits judge report --judge openai:o3")
@options(ReportOptions)
@prints(JudgeReport)
@pass_session
def report(session: Session, options: ReportOptions, as_json: bool) -> None:
    """Agreement of every judge with people's labels, per label, over time; and what it cost.

    Controls count by their sampling probability, so that recall is over all prompts. Writes a JSON
    file and a page with plots.
    """
    folder = options.out or session.root / "results" / "judge"
    with session.open_store() as store:
        pair = options.pair and store.results.find_pair(options.pair)
        measured = judge_report(store, pair=pair, judge=options.judge, resamples=options.resamples)
    if not measured.judges:
        raise RequestError("no judge has judged anything here; run `em-circuits label` first")
    config = {"judge": options.judge, "pair": pair, "resamples": options.resamples}
    provenance: dict[str, Any] = {"inputs": {"store": session.store_name}, "config": config}
    write_json(folder / "report.json", measured.model_dump(mode="json"))
    write_provenance(folder / "report.json", **provenance)
    pages.judges.write_judge_page(measured, folder / "report.html", **provenance)
    emit(measured, as_json, describe)
    if not as_json:
        say(f"written: {folder / 'report.html'} and report.json")


class PanelOptions(Options):
    """Who sits on the panel, and over which prompts."""

    judges: Annotated[
        tuple[str, ...], Flag("--judge", "judges", metavar="lexicon:FILE|openai:MODEL")
    ]
    """A judge; at least two."""
    pair: Annotated[str | None, Flag(metavar="KEY")] = None
    """The pair of models. [default: the one with most prompts]"""
    only_divergent: bool = False
    """Leave out prompts whose verdict is neither injection nor promotion."""
    resamples: int = Field(default=2000, ge=0)
    """Bootstrap draws of the intervals; 0 for none."""


_HOW_ASKED = OptionSet(JudgeOptions, omit=("judge",), judge_prompt=Flag(metavar="VERSION|FILE"))


@judge.command(
    epilog="Example: em-circuits judge panel --judge lexicon:words.yaml --judge openai:o3"
)
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@options(PanelOptions)
@_HOW_ASKED
@llm_options
@prints("em_circuits.labelling.panel:JudgePanel")
@pass_session
def panel(
    session: Session,
    prompts: tuple[str, ...],
    options: PanelOptions,
    as_json: bool,
    **asking: Any,
) -> None:
    """Several judges over stored prompts: how far they agree, and what they contest.

    Only what a judge has not said yet is asked; no model of the pair runs. Contested prompts come
    first in the review queue. Where no person labelled, the first judge's labels count.
    """
    from em_circuits.labelling.panel import judge_panel

    specs = [JudgeSpec.parse(each) for each in options.judges]
    with session.workspace() as work:
        store = work.store
        pair = _pair_of(store, options.pair)
        judges = [
            open_model_judge(spec.argument, store, pair, asking)
            if spec.kind == "openai"
            else open_offline_judge(session, work, named)
            for spec, named in zip(specs, options.judges, strict=True)
        ]
        chosen = _stored(store, pair, prompts, only_divergent=options.only_divergent)
        found = judge_panel(store, pair, chosen, judges, resamples=options.resamples)
    emit(found, as_json, describe_panel)


def _pair_of(store: Store, prefix: str | None) -> str:
    if prefix is not None:
        return store.results.find_pair(prefix)
    pair = store.results.busiest_pair()
    if pair is None:
        raise RequestError("no prompt has next tokens yet; run em-circuits label first")
    return pair


def _stored(
    store: Store, pair: str, prompts: Sequence[str], *, only_divergent: bool
) -> list[Prompt]:
    """The prompts that are named, else all that a pair of models has seen."""
    chosen = [store.prompts.get(prefix) for prefix in prompts]
    if not prompts:
        every = {prompt.prompt_id: prompt for prompt in store.prompts.all()}
        chosen = [every[each] for each in store.results.next_tokens_of(every, pair)]
    if only_divergent:
        divergent = store.queries.divergent(pair)
        chosen = [prompt for prompt in chosen if prompt.prompt_id in divergent]
    if not chosen:
        raise RequestError("no such prompt is there; run em-circuits label first")
    return chosen


class ShowOptions(Options):
    """Which models are shown."""

    model: Annotated[str | None, Flag("--model", metavar="MODEL")] = None
    """Only this one. [default: all]"""


class AskedEndpoint(Capabilities):
    """How one model of one endpoint is asked."""

    base_url: str
    model: str


@judge.command(epilog="Example: em-circuits judge show --json")
@options(ShowOptions)
@prints(AskedEndpoint, lines=True)
@pass_session
def show(session: Session, options: ShowOptions, as_json: bool) -> None:
    """How models are asked, as their endpoints were found to take it.

    What an endpoint turned down is left out, with its own words; judge reset forgets it. A
    temperature that was asked for and left out stands in the judge's id.
    """
    with session.open_store() as store:
        endpoints = store.ledger.endpoints()
    found = [
        AskedEndpoint(base_url=url, model=model, **dict(Capabilities.model_validate_json(payload)))
        for (url, model), payload in endpoints.items()
        if options.model in (None, model)
    ]
    for each in found:
        emit(each, as_json, describe_endpoint)
    if not found and not as_json:
        say("every endpoint takes what it is asked by default, or none was asked yet")


class ResetOptions(Options):
    """What is forgotten."""

    model: Annotated[str | None, Flag("--model", metavar="MODEL")] = None
    """Of this model only. [default: all]"""
    filtered: bool = False
    """Have prompts judged again that a filter refused, too."""


class Forgotten(Frozen):
    """What was forgotten."""

    endpoints: int
    filtered: int
    """Prompts."""


@judge.command(epilog="Example: em-circuits judge reset --model qwen3")
@options(ResetOptions)
@prints(Forgotten)
@pass_session
def reset(session: Session, options: ResetOptions, as_json: bool) -> None:
    """Forget what endpoints turned down, so that everything is tried again; labels stay."""
    with session.open_store() as store:
        endpoints, filtered = store.ledger.forget_capabilities(options.model), 0
        if options.filtered:
            store.ledger.forget_filtered(options.model)
            judges = "" if options.model is None else f"openai:{options.model}@"
            filtered = store.results.forget_filtered(judges)
    emit(Forgotten(endpoints=endpoints, filtered=filtered), as_json, describe_forgotten)


def describe_panel(found: JudgePanel) -> Iterator[str]:
    """Who said what, how far they agree, and the prompts that they contest most."""
    yield f"{found.prompts} prompts of pair {found.pair[:12]}"
    rows = [
        (one.judge, one.judged, one.filtered, one.unparsed, one.flagged, one.divergent)
        for one in found.judges
    ]
    header = ("judge", "judged", "filtered", "unusable", "flagged", "divergent")
    yield table(header, rows)
    yield ""
    for comparison in found.agreement:
        yield from describe_comparison(comparison)
    if found.disagreements:
        yield ""
        shown = [
            (
                one.prompt_id,
                one.mass,
                one_line("".join(f"{token.text} " for token in one.tokens[:4]), 24),
                ", ".join(dict.fromkeys(one.verdicts.values())),
            )
            for one in found.disagreements[:_SHOWN]
        ]
        yield table(("prompt", "contested mass", "tokens", "verdicts"), shown)
    n = len(found.disagreements)
    yield f"{n} prompts contested, {found.queued} of them new in the review queue, where"
    yield "the largest contested mass comes first"


def describe_endpoint(endpoint: AskedEndpoint) -> Iterator[str]:
    """How an endpoint is asked, in lines of at most 79 columns."""
    yield f"{endpoint.model} at {endpoint.base_url}"[:79]
    heat = "temperature" if endpoint.temperature else "no temperature"
    system = "system turn" if endpoint.system else "no system turn"
    yield f"  {endpoint.form}, {endpoint.limit}, {heat}, {system}"
    for said in endpoint.turned_down:
        yield from textwrap.wrap(
            f"  turned down  {said}", 79, subsequent_indent=" " * 15, max_lines=3
        )


def describe_forgotten(forgotten: Forgotten) -> list[str]:
    """One line."""
    return [
        f"forgotten: how {forgotten.endpoints} models are asked, "
        f"{forgotten.filtered} prompts filtered"
    ]


def describe(report: JudgeReport) -> list[str]:
    """The report in a few lines of at most 79 columns."""
    lines = [
        f"{report.human_labelled} prompts labelled by people, {report.controls} of them controls"
    ]
    for one in report.judges:
        cost = one.cost
        each = f", ${cost.usd_per_found:.4f} each" if cost.usd_per_found is not None else ""
        lines += [
            "",
            one.judge[:79],
            f"  {one.judged} prompts judged, {one.filtered} filtered, {one.unparsed} answers "
            f"unusable, {cost.calls} calls, ${cost.usd:.4f}",
            f"  {cost.found} found (divergent){each}",
        ]
        if one.quotes or one.quotes_dropped:
            lines.append(f"  {one.quotes} spans quoted, {one.quotes_dropped} dropped: not there")
        if one.flip_rate is not None:
            lines.append(f"  {one.votes} votes, flip rate {one.flip_rate:.3f}")
        if not one.tokens.tokens:
            lines.append("  nothing to compare with: no person labelled these prompts blind")
            continue
        found = one.tokens.agreement
        lines.append(
            f"  {one.tokens.tokens} tokens of {one.tokens.prompts} prompts compared: "
            f"agreement {_shown(found.percent.value)}, kappa {_shown(found.kappa.value)}"
        )
        lines.append(
            f"  flagged prompts: precision {_shown(one.flags.precision)}, "
            f"recall {_shown(one.flags.recall)} (weighted, {one.flags.prompts} prompts)"
        )
        rows = [
            (label, f.precision, f.precision_weighted, f.recall, f.recall_weighted)
            for label, f in one.tokens.classes.items()
        ]
        header = ("label", "precision", "weighted", "recall", "weighted")
        lines += [f"  {line}" for line in table(header, rows, width=77).splitlines()]
    return lines


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
