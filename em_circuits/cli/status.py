"""``em-circuits status``: everything about a run, or about one attempt, in one place."""

from __future__ import annotations

import getpass
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from em_circuits.cli.options import FiniteRange
from em_circuits.cli.output import emit, folded, prints, say, table
from em_circuits.cli.session import Session, pass_session
from em_circuits.engine.events import WorkersState, latest_events
from em_circuits.labelling.result import TokenRollouts, token_rollouts
from pivotal_tokens.errors import RequestError
from pivotal_tokens.pivotality import EvilRates, free_rates, pivotality
from pivotal_tokens.review.browsing import Browsing
from pivotal_tokens.review.display import visible, wrap
from pivotal_tokens.schema import Frozen, Label, ModelName, NextTokens, PromptLabels, Rollout
from pivotal_tokens.store import AttemptView, PairAttempt, Store, StoreCounts, Unanswered

_SHOWN_EVENTS = 8


class RolloutText(Frozen):
    """One continuation."""

    model: ModelName
    sample: int
    text: str
    label: Label
    reason: str


class CandidateRollouts(TokenRollouts):
    """What the continuations after one evil candidate say, under one pair and judge."""

    pair: str
    judge: str
    texts: tuple[RolloutText, ...]


class FreeRollouts(EvilRates):
    """What the continuations of the prompt alone say, under one pair and judge."""

    pair: str
    judge: str
    texts: tuple[RolloutText, ...]


class KeptLine(Frozen):
    """A ranking, scan or steering of the prompt that is kept."""

    key: str
    at: datetime
    kind: str
    pair: str
    model: ModelName
    said: str
    """What it is, and its figure."""


class AttemptStatus(AttemptView):
    """Everything about one prompt."""

    rollouts: tuple[CandidateRollouts, ...]
    free_rollouts: tuple[FreeRollouts, ...]
    results: tuple[KeptLine, ...]
    """Rankings, scans and steering that are kept; the same command prints one again."""


class RunStatus(Frozen):
    """How far a store is, and what happened last in the newest run."""

    counts: StoreCounts
    workers: WorkersState | None
    """Null where one process does everything."""
    events: list[dict[str, Any]]


@click.command(epilog="Example: em-circuits status 44a71b   or   em-circuits status --watch")
@click.argument("prompt", required=False)
@click.option("--watch", is_flag=True, help="Show the state again and again, until Ctrl-C.")
@click.option(
    "--interval",
    default=2.0,
    show_default=True,
    type=FiniteRange(min=0.1),
    metavar="S",
    help="Seconds between two looks.",
)
@prints(AttemptStatus | StoreCounts | RunStatus)
@pass_session
def status(
    session: Session, prompt: str | None, watch: bool, interval: float, as_json: bool
) -> None:
    """Progress of the store; with PROMPT (an id or unique prefix) all about one attempt."""
    if watch and prompt is not None:
        raise RequestError("--watch shows the whole store; leave PROMPT out")
    if watch:
        _watch(session, interval, as_json=as_json)
        return
    with session.open_store() as store:
        if prompt is not None:
            found = attempt_status(store, session.root / "results", prompt)
            emit(found, as_json, describe_attempt)
            if not as_json:
                _warn(store, found.prompt.prompt_id)
        else:
            emit(store.queries.counts(), as_json, describe_counts)


def _warn(store: Store, prompt_id: str) -> None:
    """Say, and remember, that a judge's labels were shown before this person's own answer."""
    person = getpass.getuser()
    if prompt_id in store.queries.unanswered(Unanswered(reviewer=person), [prompt_id]):
        Browsing.of(store, person).seeing(store, person, {prompt_id})
        say(
            "\nThis prompt waits for your review: labels that you give it are kept\n"
            "as given after you saw the judge's."
        )


def attempt_status(store: Store, results: Path, prefix: str) -> AttemptStatus:
    """Everything about the prompt whose id begins with `prefix`.

    Raises:
        RequestError: If no prompt has it, or more than one.
    """
    view = store.queries.attempt(prefix)
    rollouts: list[CandidateRollouts] = []
    free: list[FreeRollouts] = []
    for pair in view.pairs:
        stored = store.results.rollouts(view.prompt.prompt_id, pair.pair)
        for judge in sorted({rollout.judge for rollout in stored}):
            mine = [rollout for rollout in stored if rollout.judge == judge]
            for each in token_rollouts(pivotality(mine), pair.next_tokens):
                texts = _texts(mine, each.token_id)
                rollouts.append(
                    CandidateRollouts(**dict(each), pair=pair.pair, judge=judge, texts=texts)
                )
            if (alone := free_rates(mine)) is not None:
                texts = _texts(mine, None)
                free.append(FreeRollouts(**dict(alone), pair=pair.pair, judge=judge, texts=texts))
    fields = {name: getattr(view, name) for name in AttemptView.model_fields}
    return AttemptStatus(
        **fields,
        rollouts=tuple(rollouts),
        free_rollouts=tuple(free),
        results=tuple(_kept(results, view.prompt.prompt_id)),
    )


def _kept(results: Path, prompt_id: str) -> Iterator[KeptLine]:
    if not (results / "prompts" / prompt_id).is_dir():
        return  # nothing is imported for nothing
    from em_circuits.experiments.kept import kept_of

    for one in kept_of(results, prompt_id):
        asked = one.asked
        yield KeptLine(
            key=one.key,
            at=one.at,
            kind=asked.kind,
            pair=asked.pair,
            model=asked.model,
            said=one.said,
        )


def _texts(rollouts: Sequence[Rollout], token_id: int | None) -> tuple[RolloutText, ...]:
    return tuple(
        RolloutText(**one.model_dump(include=set(RolloutText.model_fields)))
        for one in rollouts
        if one.token_id == token_id
    )


def _watch(session: Session, interval: float, *, as_json: bool) -> None:
    """The state and the last events of the newest run, in place on a terminal."""
    while True:
        with session.open_store() as store:
            counts = store.queries.counts()
        events = latest_events(session.root / "results")
        if not as_json:
            click.clear()
        workers, shown = WorkersState.of(events), events[-_SHOWN_EVENTS:]
        emit(RunStatus(counts=counts, workers=workers, events=shown), as_json, describe_run)
        try:
            time.sleep(interval)
        except KeyboardInterrupt:
            return


def describe_run(run: RunStatus) -> Iterator[str]:
    """The counts, then an event a line."""
    yield from describe_counts(run.counts)
    if (seen := run.workers) is not None:
        yield f"workers         {len(seen.workers)} seen, {seen.done} done, {seen.left} left"
        if seen.last_error:
            yield f"                last error: {seen.last_error}"[:79]
    yield from ("", *map(describe_event, run.events))


def describe_event(event: dict[str, Any]) -> str:
    """One line of at most 79 columns about an event of a run."""
    hidden = ("at", "run", "event")
    parts = [
        f"{name} {len(value) if isinstance(value, list) else value}"
        for name, value in event.items()
        if name not in hidden and value is not None
    ]
    return f"{str(event.get('at', ''))[11:19]}  {event.get('event', '?'):<9}  {', '.join(parts)}"[
        :79
    ]


def describe_counts(counts: StoreCounts) -> list[str]:
    """The state of a store in a few lines."""

    def named(numbers: dict[str, int]) -> str:
        return ", ".join(f"{n} {name}" for name, n in numbers.items()) or "none"

    return [
        f"prompts         {counts.prompts} ({counts.next_tokens} with next tokens, "
        f"{counts.judgements} judged)",
        f"verdicts        {named(counts.verdicts)}",
        f"                {counts.flagged} flagged, {counts.divergent} divergent",
        f"human verdicts  {named(counts.human_verdicts)} "
        f"({counts.human_labelled} prompts with human labels)",
        f"queue           {named(counts.queue)}",
        f"graphs          {counts.graphs} ({counts.graph_bytes / 1e6:.1f} MB)",
        f"failures        {named(counts.failures)}",
        *_calls(counts),
    ]


def _calls(counts: StoreCounts) -> list[str]:
    """What language models were asked and cost; nothing where none was."""
    if not counts.calls:
        return []
    states = ", ".join(f"{n} {state}" for state, n in counts.calls.items())
    return [
        f"model calls     {sum(counts.calls.values())} ({states}), ${counts.usd:.4f} charged; "
        f"{counts.unparsed} unusable, {counts.filtered} filtered"
    ]


def describe_attempt(view: AttemptStatus) -> list[str]:
    """Everything about one prompt, at most 79 columns wide."""
    prompt = view.prompt
    lines = [
        f"prompt {prompt.prompt_id}  {prompt.kind}, by {prompt.generator}, {prompt.created_at:%F}"
    ]
    lines += [f"  | {line}" for line in wrap(prompt.text, 75)]
    for pair in view.pairs:
        lines += ["", f"pair {pair.pair[:12]}", *_pair(pair, view.labels)]
    events = [e for e in view.label_events if e.author_kind == "human"]
    lines += ["", f"human labels: {len(view.labels.human)} tokens in {len(events)} events"]
    lines += [
        f"  {e.at:%F %T}  {e.author}: {e.action}{f' ({e.text})' if e.text else ''}"
        for e in view.review_events
    ]
    for item in view.free_rollouts:
        lines += folded(_describe_rollouts("free rollouts", item), 4)
    for each in view.rollouts:
        lines += folded(_describe_rollouts(f"rollouts {visible(each.text or '?')}", each), 4)
    if view.results:
        lines += ["", "kept (the same command prints it again, without a model):"]
    for one in view.results:
        lines += folded(f"  {one.at:%F}  {one.said}", 14)
    return lines


def _describe_rollouts(what: str, item: EvilRates) -> str:
    """One line about continuations."""
    said = {True: "pivotal", False: "not pivotal", None: "unknown"}[item.pivotal]
    shares = ", ".join(
        f"{model} {counts.evil} of {counts.known}"
        for model, counts in (("base", item.base), ("merged", item.merged))
    )
    interval = (
        "" if item.low is None else f"; {item.difference:+.2f} [{item.low:.2f}, {item.high:.2f}]"
    )
    return f"{what}: {said} (evil: {shares}{interval})"


def _pair(pair: PairAttempt, labels: PromptLabels) -> list[str]:
    lines = []
    for judge, verdict in pair.verdicts.items():
        mass = verdict.evil_mass
        masses = f", evil mass {mass.base:.3f} -> {mass.merged:.3f}" if mass else ""
        flags = ", flagged" * verdict.flagged + ", divergent" * verdict.divergent
        lines += [f"  {verdict.kind}{flags}{masses}", f"    by {judge}"]
    if pair.next_tokens:
        lines += _tokens(pair.next_tokens.base, pair.next_tokens.merged, labels)
    if pair.item:
        by = f" by {pair.item.reviewer}" if pair.item.reviewer else ""
        lines.append(f"  queue: {pair.item.state}{by}, {pair.item.reason}")
    for graph in pair.graphs:
        lines.append(f"  graph {graph.model:<6}  {graph.key[:12]}  {graph.bytes / 1e6:.2f} MB")
        lines.append(f"    {graph.path}")
    lines += [f"  failed at {f.stage} ({f.attempts} times): {f.error}" for f in pair.failures]
    return lines


def _tokens(base: NextTokens, merged: NextTokens, labels: PromptLabels) -> list[str]:
    known, other = labels.by_token, base.by_id
    rows = [
        (
            token.rank,
            visible(token.text),
            token.token_id,
            other[token.token_id].probability,
            token.probability,
            known.get(token.token_id, "-"),
        )
        for token in merged.tokens
    ]
    header = ("rank", "token", "id", "p(base)", "p(merged)", "label")
    return [f"  {line}" for line in table(header, rows, width=77).splitlines()]
