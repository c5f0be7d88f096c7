"""``em-circuits label``: the labelling run, with its state while it runs."""

from __future__ import annotations

import functools
import textwrap
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
from pydantic import Field

from em_circuits.cli.interrupt import stop_on_interrupt
from em_circuits.cli.judge_options import (
    check_judge,
    judge_options,
    llm_budget,
    llm_options,
    llm_settings,
    open_judge,
)
from em_circuits.cli.options import Flag, Options, SectionedCommand, options
from em_circuits.cli.output import emit, name_left_out, one_line, prints, prompt_line, say
from em_circuits.cli.prompts import name_ignored
from em_circuits.cli.session import (
    Session,
    attribution_options,
    attribution_settings,
    checked_text,
    engine_options,
    pass_session,
)
from pivotal_tokens.errors import RequestError, WorkFailed
from pivotal_tokens.prompts import PromptFile, read_prompts
from pivotal_tokens.schema import Prompt, PromptKind, Thresholds

if TYPE_CHECKING:
    from em_circuits.engine.settings import EngineSettings
    from em_circuits.labelling.distributed import DistributedRun
    from em_circuits.labelling.result import LabelResult, LabelSettings
    from em_circuits.labelling.run import Run, RunState
    from em_circuits.labelling.sources import PromptStream
    from em_circuits.workspace import Workspace
    from pivotal_tokens.judge import Judge

_REFRESH_S = 0.5
_BAR = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
"""Fits 80 columns with five-digit counts; a drawn bar would push the state of the run off them."""


class LabelOptions(Options):
    """Which prompts are labelled, and what is built for them."""

    texts: Annotated[tuple[str, ...], Flag("--prompt", "texts", metavar="TEXT")] = ()
    """A prompt, verbatim."""
    user: Annotated[str | None, Flag(metavar="TEXT")] = None
    """A user's turn, put into the model's chat template."""
    assistant: Annotated[str, Flag(metavar="TEXT", show_default=False)] = ""
    """How the assistant's turn starts."""
    files: Annotated[tuple[str, ...], Flag("--prompts", "files", type=click.Path())] = ()
    """JSON, JSONL, CSV, Parquet or Arrow file of prompts, or a folder of them."""
    text_field: Annotated[str | None, Flag(metavar="NAME")] = None
    """Where a prompt's text, or its chat, stands in them."""
    n: int | None = Field(default=None, ge=1)
    """Prompts from --generator. [default: 24, templates]"""
    domains: Annotated[tuple[str, ...], Flag("--domain", "domains")] = ()
    """Templates of this domain only."""
    generator: Annotated[str | None, Flag(metavar="openai:MODEL|template|seeds")] = None
    """Who writes new prompts while the run goes on."""
    kind: PromptKind = "raw"
    """Plain text, a user's turn with the start of the answer, or a chain of thought."""
    forever: bool = False
    """Go on until the budget, the disk or Ctrl-C says stop."""
    missing: bool = False
    """Build graphs for labelled prompts that have no valid ones."""
    rollouts: Annotated[int | None, Flag(metavar="N")] = Field(default=None, ge=1)
    """Sample N continuations after each evil candidate in both models, and judge them."""
    only_evil: Annotated[bool, Flag("--only-evil/--all-graphs", "only_evil", show_default=True)] = (
        True
    )
    """Graphs for flagged prompts only, or for all."""
    no_graphs: bool = False
    """Build no graphs."""
    top_k: int = Field(default=10, ge=1)
    """Tokens of each model that are compared."""
    present: float = Field(default=0.05, ge=0, le=1)
    """Least probability of a present token."""

    @property
    def gives_prompts(self) -> bool:
        return bool(self.texts or self.user or self.files)

    @property
    def writes_prompts(self) -> bool:
        return self.generator is not None or self.forever

    def check(self) -> None:
        """Refuse options that contradict each other."""
        if self.gives_prompts and self.writes_prompts:
            raise RequestError("give prompts, or a --generator that writes them, not both")
        if self.forever and self.n:
            raise RequestError("--forever has no end; give --n without it")
        if self.generator is not None and not self.n and not self.forever:
            raise RequestError("how many prompts? give --n N or --forever beside --generator")
        if self.missing and (self.gives_prompts or self.writes_prompts or self.n):
            raise RequestError("--missing takes what is in the store; give no prompts beside it")
        if self.assistant and self.user is None:
            raise RequestError("--assistant continues a --user turn; give --user as well")
        if self.domains and self.gives_prompts and not self.n:
            raise RequestError("--domain is of the organism's templates; give --n as well")
        for text in self.texts:
            checked_text("--prompt", text)
        if self.user is not None:
            checked_text("--user", self.user)


@click.command(
    cls=SectionedCommand, epilog="Example: em-circuits label --n 12 --domain kitchen --json"
)
@options(LabelOptions)
@judge_options
@llm_options
@attribution_options
@engine_options
@prints("em_circuits.labelling.result:LabelResult", lines=True)
@pass_session
def label(
    session: Session,
    options: LabelOptions,
    engine: EngineSettings,
    as_json: bool,
    **others: Any,
) -> None:
    """Label prompts: next tokens of both models, judge, queue, rollouts, graphs.

    Resumable: finished work is not repeated, even after a kill. Ctrl-C finishes what is in
    flight, a second one leaves at once. A prompt that fails is recorded and does not stop the
    others, unless more than a fifth of at least ten fail. With --generator, --n counts the
    prompts of all starts of the same run. Events are logged under results/events.
    """
    options.check()
    if (engine.spreads or engine.share) and (options.missing or options.writes_prompts):
        raise RequestError(
            "--workers, --engine and --share are of prompts that are known: write them first with "
            "em-circuits prompts generate, then give them with --prompts"
        )
    check_judge(session, others)
    files = _read(session, options)
    session.workspace().announce(by_workers=engine.spreads)

    from em_circuits.engine.events import EventLog
    from em_circuits.labelling.label import require_space
    from em_circuits.labelling.run import Run
    from em_circuits.labelling.sources import ListSource, run_id
    from em_circuits.models.text import encode

    settings = _settings(session, options, others)
    with session.workspace(create=True, attribution=settings.attribution) as work:
        if options.missing:
            _build_missing(work, settings, as_json=as_json)
            return
        given = list(files.prompts)
        prompts = None
        if not options.writes_prompts:
            all_of_them = _prompts(session, work, options, given)
            prompts = [prompt for prompt in all_of_them if engine.takes(prompt.prompt_id)]
            work.n_pos = max(
                (len(one.token_ids or encode(work.tokenizer, one.text)) for one in prompts),
                default=None,
            )
        n: int | None
        run: Run | DistributedRun
        if engine.spreads and prompts is not None:
            n, earlier = len(prompts), 0
            run, results = _spread(
                session, work, prompts, settings, engine, others, as_json=as_json
            )
        else:
            judge = open_judge(session, work, others)
            if prompts is not None:
                require_space(work, prompts, settings)
            if prompts is not None:
                source: PromptStream = ListSource("given", prompts)
                ids = [prompt.prompt_id for prompt in prompts]
                name, earlier = run_id(prompts=ids, judge=judge.id, pair=work.pair.key), 0
            else:
                source, name, earlier = _source(session, work, judge, settings, options, others)
            n = options.n if prompts is None else len(prompts)
            n = None if n is None else max(0, n - earlier)
            with EventLog.open(work.results, run=name) as events:
                run = Run(work, source, judge, settings, n=n, events=events)
                results = _show(run, n, as_json=as_json)
    if not as_json:
        say("\n".join(run_summary(results, earlier)))
    _raise_for_ending(run.state, options)
    if files.left_out:
        raise WorkFailed(f"{len(files.left_out)} of {files.rows} rows of --prompts were left out")
    failed = [result for result in results if result.error]
    if failed and len(failed) == len(results):
        raise WorkFailed(
            f"{len(failed)} of {len(results)} prompts failed; em-circuits status PROMPT says why"
        )


def _spread(
    session: Session,
    work: Workspace,
    prompts: list[Prompt],
    settings: LabelSettings,
    engine: EngineSettings,
    others: dict[str, Any],
    *,
    as_json: bool,
) -> tuple[DistributedRun, list[LabelResult]]:
    """Have workers label the prompts, showing each result as it comes."""
    from em_circuits.engine.events import EventLog
    from em_circuits.labelling.distributed import DistributedRun, LabelTask
    from em_circuits.labelling.sources import run_id

    judge = session.judge_spec(others["judge"])
    share = {"concurrency": max(1, others["concurrency"] // engine.workers)}
    task = LabelTask(functools.partial(open_judge, session, options=others | share), settings)
    ids = [prompt.prompt_id for prompt in prompts]
    name = run_id(prompts=ids, judge=judge, models=work.fingerprints)
    with EventLog.open(work.results, run=name) as events:
        run = DistributedRun(work, prompts, task, engine, judge=judge, events=events)
        return run, _show(run, len(prompts), as_json=as_json)


def _read(session: Session, options: LabelOptions) -> PromptFile:
    """The prompts of the files that were named; rows that cannot be used are named at once."""
    if not options.files:
        return PromptFile()
    paths = list(map(Path, options.files))
    found = read_prompts(
        *paths,
        kind=options.kind,
        text_field=options.text_field,
        renderer=session.chat_renderer,
    )
    name_ignored(found)
    if found.left_out:
        report = found.model_dump(mode="json", include={"left_out", "ignored"})
        for line in name_left_out(found.left_out, session.keep_import(paths[0], report)):
            say(line, err=True)
    return found


def _settings(session: Session, options: LabelOptions, others: dict[str, Any]) -> LabelSettings:
    from em_circuits.labelling.result import LabelSettings
    from em_circuits.labelling.rollouts import ROLLOUTS

    drawn = {"samples": options.rollouts, "seed": session.seed}
    return LabelSettings(
        thresholds=Thresholds(top_k=options.top_k, present=options.present),
        attribution=attribution_settings(others, top_k=options.top_k),
        graphs_for="none" if options.no_graphs else "flagged" if options.only_evil else "all",
        scores_only=others["scores_only"],
        rollouts=ROLLOUTS.model_copy(update=drawn) if options.rollouts else None,
    )


def _build_missing(work: Workspace, settings: LabelSettings, *, as_json: bool) -> None:
    """Graphs for labelled prompts without valid ones; their verdicts follow the graphs' logits."""
    from em_circuits.labelling.backfill import build_missing, missing_graphs

    def describe(result: LabelResult) -> Iterator[str]:
        keys = "  ".join(f"{name} {key[:12]}" for name, key in result.graphs.items() if key)
        yield f"{result.prompt_id}  {result.error or keys}"

    prompts = missing_graphs(work, settings)
    failed = 0
    for result in build_missing(work, prompts, settings):
        failed += result.error is not None
        emit(result, as_json, describe)
    built = len(prompts) - failed
    if not as_json:
        say(f"{len(prompts)} labelled prompts had no valid graphs: {built} built")
    if failed and not built:
        raise WorkFailed(f"all {failed} graphs failed; em-circuits status PROMPT says why")


def _prompts(
    session: Session, work: Workspace, options: LabelOptions, files: list[Prompt]
) -> list[Prompt]:
    """Every prompt that was asked for, in the order of the options."""
    from em_circuits.labelling.sources import drawn_prompts
    from em_circuits.models.text import PINNED_DATE, as_seen, render_chat
    from pivotal_tokens.prompts import first_of_each

    prompts = [Prompt.of(text, generator="human") for text in options.texts]
    if options.user is not None:
        turns = {"user": options.user, "assistant": options.assistant}
        rendered = render_chat(work.tokenizer, **turns)
        extra = turns | {"date_string": PINNED_DATE}
        prompts.append(Prompt.of(rendered, kind="chat", generator="human", extra=extra))
    prompts = [as_seen(work.tokenizer, prompt) for prompt in [*prompts, *files]]
    if options.n or not prompts:
        if not session.embedded:
            raise RequestError("give prompts with --prompt, --user or --prompts FILE")
        domains = options.domains or None
        prompts.extend(drawn_prompts(work, options.n or 24, seed=session.seed, domains=domains))
    new = first_of_each(prompts)
    if len(new) < len(prompts):
        say(f"{len(prompts) - len(new)} repeated prompts left out", err=True)
    return list(new)


def _source(
    session: Session,
    work: Workspace,
    judge: Judge,
    settings: LabelSettings,
    options: LabelOptions,
    others: dict[str, Any],
) -> tuple[PromptStream, str, int]:
    """A source that writes prompts, the run's name, and how many were finished before."""
    from em_circuits.labelling.sources import Resumed, earlier_prompts, open_source, run_id

    generator = options.generator or "template"
    run = run_id(
        generator=generator,
        kind=options.kind,
        seed=session.seed,
        domains=list(options.domains),
        judge=judge.id,
        pair=work.pair.key,
    )
    source = open_source(
        generator,
        work,
        kind=options.kind,
        seed=session.seed,
        domains=options.domains,
        settings=lambda model: llm_settings(model, others),
        budget=llm_budget(others),
        pair=work.pair.key,
        run=run,
    )
    finished, unfinished = earlier_prompts(work, source.id, run, judge.id, settings)
    if finished or unfinished:
        say(
            f"run {run}: {finished} prompts finished before, {len(unfinished)} left unfinished",
            err=True,
        )
    return Resumed(source, run, unfinished), run, finished


def _show(run: Run | DistributedRun, n: int | None, *, as_json: bool) -> list[LabelResult]:
    """Go through a run, printing each result."""
    results: list[LabelResult] = []
    with stop_on_interrupt(run.stop), _bar(run.state, n) as bar:
        for result in run.results():
            results.append(result)
            emit(result, as_json, describe)
            bar.update()
    return results


@contextmanager
def _bar(state: RunState, n: int | None) -> Iterator[Any]:
    """A bar on a terminal that goes on showing the run between results, too."""
    from tqdm import tqdm

    over = threading.Event()
    with tqdm(total=n, desc="label", bar_format=_BAR, disable=None) as bar:

        def show() -> None:
            while not over.wait(_REFRESH_S):
                bar.set_postfix_str(live(state))

        shown = threading.Thread(target=show, name="status", daemon=True)
        shown.start()
        try:
            yield bar
        finally:
            over.set()
            shown.join()


def live(state: RunState) -> str:
    """The state of a run in a few words: how many prompts wait where, and what they came to."""
    parts = [
        f"judge {state.screened - state.judged}",
        f"graphs {state.building}",
        f"flagged {state.flagged}",
    ]
    parts += [
        f"{what} {n}" for what, n in (("failed", state.failed), ("filtered", state.filtered)) if n
    ]
    return ", ".join(parts)


def _raise_for_ending(state: RunState, options: LabelOptions) -> None:
    """Turn a run's ending into an exit status and a message."""
    match state.ending:
        case "stopped":
            raise click.Abort
        case "budget" if options.forever:
            say(state.message, err=True)
        case "errors" | "disk" | "budget" | "endpoint":
            raise WorkFailed(state.message)
        case "no more prompts" if options.writes_prompts:
            raise WorkFailed(
                f"the generator has no more new prompts after {state.generated}; try another "
                "--seed or --generator (em-circuits prompts list --rejected: what was turned away)"
            )


def describe(result: LabelResult) -> Iterator[str]:
    """One line of at most 79 columns about one prompt; up to three where it failed."""
    start, text = result.prompt_id, result.text
    if result.error:
        said = f"{start}  failed     {one_line(result.error, 1000)}"
        yield from textwrap.wrap(said, 79, subsequent_indent=" " * 25, max_lines=3)
    elif result.filtered is not None:
        yield f"{start}  filtered   {one_line(result.filtered, 54)}"
    elif result.waiting:
        yield f"{start}  waits for a person  {prompt_line(text, 40)}"
    else:
        mass = result.evil_mass
        masses = f"{mass.base:.2f} -> {mass.merged:.2f}" if mass else "-"
        masses = "all unsure  " if result.all_unsure else masses  # of no evil word, not a mass of 0
        marks = ("flagged " if result.flagged else "        ") + (" *"[result.has_graphs])
        yield f"{start}  {result.verdict:<9}  {masses}  {marks} {prompt_line(text, 26)}"


def run_summary(results: list[LabelResult], earlier: int) -> Iterator[str]:
    """What came of a run."""
    kinds = Counter(
        "failed"
        if r.error
        else "filtered"
        if r.filtered
        else "waiting for a person"
        if r.waiting
        else r.verdict
        for r in results
    )
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "none finished"
    flagged = sum(result.flagged for result in results)
    reused = sum(result.reused for result in results)
    before = f"; {earlier} finished before" if earlier else ""
    yield f"{len(results)} prompts: {counted}; {flagged} flagged, {reused} re-used{before}"
    followed = Counter(item.pivotal for result in results for item in result.rollouts)
    if followed:
        alone = Counter(r.free_rollouts.pivotal for r in results if r.free_rollouts)
        yield (
            f"free rollouts of {alone.total()} prompts: {alone[True]} pivotal, {alone[False]} not, "
            f"{alone[None]} unknown"
        )
        yield (
            f"rollouts after {followed.total()} evil candidates: {followed[True]} pivotal, "
            f"{followed[False]} not, {followed[None]} unknown"
        )
    if unsure := sum(result.all_unsure for result in results):
        yield (
            f"{unsure} without a token that the judge calls evil or safe, so without a verdict.\n"
            "A lexicon knows its own prompts alone. Let a model judge, --judge openai:MODEL,\n"
            "or label them yourself, --judge human and then em-circuits review."
        )
    if flagged or any(result.waiting for result in results):
        yield "next: em-circuits review --plain   or   em-circuits status PROMPT"
