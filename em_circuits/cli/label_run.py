"""How does `em-circuits label` run its loop and show how far it is?"""

from __future__ import annotations

import textwrap
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from em_circuits.cli.interrupt import stop_on_interrupt
from em_circuits.cli.llm_options import llm_budget, llm_settings
from em_circuits.cli.output import emit, one_line
from pivotal_tokens.errors import WorkFailed

if TYPE_CHECKING:
    from em_circuits.cli.label import LabelRequest
    from em_circuits.cli.session import Session
    from em_circuits.labelling.label import LabelResult, LabelSettings
    from em_circuits.labelling.loop import Loop, Progress
    from em_circuits.labelling.sources import Source
    from em_circuits.workspace import Workspace
    from pivotal_tokens.judge import Judge

_REFRESH_S = 0.5
_BAR = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
"""Fits 80 columns with five-digit counts; a drawn bar would push the state of the run off them."""


def run_labelling(
    session: Session,
    work: Workspace,
    judge: Judge,
    settings: LabelSettings,
    asked: LabelRequest,
    *,
    as_json: bool,
) -> list[LabelResult]:
    """Run the loop over given or generated prompts, printing each result.

    Raises:
        WorkFailed: If the run ended before its end for a reason of its own.
        click.Abort: If it was interrupted.
    """
    from em_circuits.labelling.events import EventLog
    from em_circuits.labelling.loop import Loop, LoopSettings

    source, run, n, earlier = _source(session, work, judge, settings, asked)
    results: list[LabelResult] = []
    with EventLog.open(work.results, run=run) as events, stop_on_interrupt() as stop:
        loop = Loop(work, source, judge, settings, LoopSettings(n=n), events=events, stop=stop)
        with _bar(loop, n) as bar:
            for result in loop.results():
                results.append(result)
                if as_json:
                    emit(result.to_json())
                else:
                    bar.write(describe(result))
                bar.update()
    if not as_json:
        summary(results, earlier)
    _judge_the_ending(loop.progress, endless=asked.options["forever"], given=asked.prompts)
    return results


def _source(
    session: Session,
    work: Workspace,
    judge: Judge,
    settings: LabelSettings,
    asked: LabelRequest,
) -> tuple[Source, str, int | None, int]:
    """The source, the run's name, prompts left to do, and prompts finished before."""
    from em_circuits.labelling.resume import earlier_prompts, run_id
    from em_circuits.labelling.sources import ListSource, Resumed, SourceOptions, open_source

    options = asked.options
    if asked.prompts is not None:
        ids = [prompt.prompt_id for prompt in asked.prompts]
        run = run_id(prompts=ids, judge=judge.id, pair=work.pair.key)
        return ListSource("given", iter(asked.prompts)), run, len(ids), 0
    run = run_id(
        generator=asked.generator,
        kind=options["kind"],
        seed=session.seed,
        domains=list(options["domains"]),
        judge=judge.id,
        pair=work.pair.key,
    )
    source = open_source(
        asked.generator,
        work,
        SourceOptions(
            kind=options["kind"],
            seed=session.seed,
            domains=options["domains"],
            settings=lambda model: llm_settings(model, options),
            budget=llm_budget(options),
            pair=work.pair.key,
            run=run,
        ),
    )
    earlier = earlier_prompts(work, source.id, run, judge.id, settings)
    if earlier.finished or earlier.unfinished:
        click.echo(
            f"run {run}: {earlier.finished} prompts finished before, "
            f"{len(earlier.unfinished)} left unfinished",
            err=True,
        )
    left = None if options["n"] is None else max(0, options["n"] - earlier.finished)
    return Resumed(source, run, earlier.unfinished), run, left, earlier.finished


@contextmanager
def _bar(loop: Loop, n: int | None) -> Iterator[Any]:
    """A bar on a terminal that goes on showing the run between results, too."""
    from tqdm import tqdm

    done = threading.Event()
    with tqdm(total=n, desc="label", bar_format=_BAR, disable=None) as bar:

        def show() -> None:
            while not done.wait(_REFRESH_S):
                bar.set_postfix_str(live(loop.progress))

        shown = threading.Thread(target=show, name="status", daemon=True)
        if not bar.disable:
            shown.start()
        try:
            yield bar
        finally:
            done.set()
            if shown.is_alive():
                shown.join()


def live(progress: Progress) -> str:
    """The state of a run in a few words: how many prompts wait where, and what they came to."""
    parts = [
        f"judge {progress.screened - progress.judged}",
        f"graphs {progress.waiting_graphs}",
        f"flagged {progress.flagged}",
    ]
    return ", ".join(parts + ([f"failed {progress.failed}"] if progress.failed else []))


def _judge_the_ending(progress: Progress, *, endless: bool, given: object) -> None:
    """Turn a run's ending into what the shell is told."""
    match progress.ending:
        case "stopped":
            raise click.Abort
        case "budget" if endless:
            click.echo(progress.message, err=True)
        case "errors" | "disk" | "budget" | "endpoint":
            raise WorkFailed(progress.message)
        case "no more prompts" if given is None:
            raise WorkFailed(
                f"the generator has no more new prompts after {progress.generated}; try another "
                "--seed or --generator (em-circuits prompts list --rejected: what was turned away)"
            )


def describe(result: LabelResult) -> str:
    """One line of at most 79 columns about one prompt; up to three where it failed."""
    if result.error:
        said = f"{result.prompt.prompt_id}  failed     {one_line(result.error, 1000)}"
        wrapped = textwrap.wrap(said, 79, subsequent_indent=" " * 25, max_lines=3)
        return "\n".join(wrapped)
    if result.waiting:
        return f"{result.prompt.prompt_id}  waits for a person  {one_line(result.prompt.text, 40)}"
    verdict = result.verdict
    mass = verdict.evil_mass
    masses = f"{mass.base:.2f} -> {mass.merged:.2f}" if mass else "-"
    marks = ("flagged " if verdict.flagged else "        ") + ("*" if result.graphs else " ")
    text = one_line(result.prompt.text, 26)
    return f"{result.prompt.prompt_id}  {verdict.kind:<9}  {masses}  {marks} {text}"


def summary(results: list[LabelResult], earlier: int) -> None:
    """What came of a run."""
    kinds = Counter(
        "failed" if r.error else "waiting for a person" if r.waiting else r.verdict.kind
        for r in results
    )
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "none finished"
    flagged = sum(r.verdict.flagged for r in results)
    reused = sum(r.reused for r in results)
    before = f"; {earlier} finished before" if earlier else ""
    click.echo(f"{len(results)} prompts: {counted}; {flagged} flagged, {reused} re-used{before}")
    followed = Counter(item.pivotal for r in results for item in r.pivotal)
    if followed:
        click.echo(
            f"rollouts after {followed.total()} evil candidates: {followed[True]} pivotal, "
            f"{followed[False]} not, {followed[None]} unknown"
        )
    if flagged or any(r.waiting for r in results):
        click.echo("next: em-circuits review --plain   or   em-circuits status PROMPT")
