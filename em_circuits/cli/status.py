"""``em-circuits status``: everything about a run, or about one attempt, in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from em_circuits.cli.output import emit, json_option, table
from em_circuits.cli.session import Session, pass_session

if TYPE_CHECKING:
    from pivotal_tokens.schema import NextTokens, PromptLabels
    from pivotal_tokens.store import AttemptView, Counts, PairAttempt


@click.command(epilog="Example: em-circuits status 44a71b")
@click.argument("prompt", required=False)
@json_option
@pass_session
def status(session: Session, prompt: str | None, as_json: bool) -> None:
    """How far the store is; with PROMPT (an id or unique prefix) all about one attempt."""
    with session.open_store() as store:
        view = store.attempt(prompt) if prompt is not None else None
        counts = store.counts() if view is None else None
    if as_json:
        emit((view or counts).model_dump(mode="json"))  # type: ignore[union-attr]
    elif view is not None:
        click.echo("\n".join(describe_attempt(view)))
    elif counts is not None:
        click.echo("\n".join(describe_counts(counts)))


def describe_counts(counts: Counts) -> list[str]:
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


def _calls(counts: Counts) -> list[str]:
    """What language models were asked and cost; nothing where none was."""
    if not counts.calls:
        return []
    states = ", ".join(f"{n} {state}" for state, n in counts.calls.items())
    return [
        f"model calls     {sum(counts.calls.values())} ({states}), ${counts.usd:.4f} charged; "
        f"{counts.unparsed} unusable"
    ]


def describe_attempt(view: AttemptView) -> list[str]:
    """Everything about one prompt, at most 79 columns wide."""
    from pivotal_tokens.review.display import wrap

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
    return lines


def _pair(pair: PairAttempt, labels: PromptLabels) -> list[str]:
    lines = []
    for judge, verdict in pair.verdicts.items():
        mass = verdict.evil_mass
        masses = f", evil mass {mass.base:.3f} -> {mass.merged:.3f}" if mass else ""
        flags = ", flagged" * verdict.flagged + ", divergent" * verdict.divergent
        lines.append(f"  {verdict.kind}{flags}{masses}  ({judge})")
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
    from pivotal_tokens.review.display import visible

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
