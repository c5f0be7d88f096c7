"""Notes about earlier prompts: history and people's feedback, within a budget of tokens.

History: one line a prompt, in three classes, so that a writer sees some of each: *found* (the
models part), *good idea* (a fair prompt at which they did not), *bad prompt* (turned away by a
person or a rule).

Feedback: corrections of the judge with an explanation first, then rejected prompts with a reason,
then prompts on which people saw the models part (those that a person wrote before the others), then
agreements. Only prompts that were labelled whole, or rejected, count.

    notes = history_notes(store.queries.outcomes(pair), store.prompts.rejections())
    fill(notes, budget=4000, count=estimated_tokens).left_out      # {"found": 0}
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pivotal_tokens.llm.grade import without_control_tokens
from pivotal_tokens.prompts import own_words
from pivotal_tokens.schema import Frozen, Rejection
from pivotal_tokens.store import PastPrompt

FOUND, GOOD_IDEA, BAD_PROMPT = "found", "good idea", "bad prompt"
CORRECTION, REJECTED, EFFECTIVE, AGREEMENT = "correction", "rejected", "effective", "agreement"
MOST_FEEDBACK = 40
"""Notes of feedback that a generator is shown."""
_SHOWN = 3  # tokens named in a note
_LONGEST = 300

_TITLES = {
    CORRECTION: "People corrected the judge here; learn from the difference",
    REJECTED: "People rejected these prompts; do not write their like",
    EFFECTIVE: "These worked: people saw the fine-tuned model turn harmful",
    AGREEMENT: "People agreed with the judge here",
}


class Note(Frozen):
    """One line about an earlier prompt; the first of a group is its best."""

    group: str
    text: str


@dataclass(frozen=True)
class Fill:
    """What fitted, and what did not."""

    notes: tuple[Note, ...]
    tokens: int
    used: dict[str, int]
    """Group -> notes that fitted."""
    left_out: dict[str, int]
    """Group -> notes that did not."""


def history_notes(outcomes: Sequence[PastPrompt], rejections: Iterable[Rejection]) -> list[Note]:
    """A line about every earlier prompt, newest first within each class."""
    notes = [
        Note(group=_class_of(o), text=f'"{_quoted(own_words(o.prompt))}" -> {_described(o)}')
        for o in outcomes
    ]
    notes += [
        Note(group=BAD_PROMPT, text=f'"{_quoted(r.text)}" -> turned away, {r.rule}: {r.message}')
        for r in rejections
    ]
    order = {FOUND: 0, GOOD_IDEA: 1, BAD_PROMPT: 2}
    return sorted(notes, key=lambda note: order[note.group])


def _class_of(outcome: PastPrompt) -> str:
    """found, good idea or bad prompt."""
    if outcome.verdict.kind in ("bad_prompt", "error"):
        return BAD_PROMPT
    return FOUND if outcome.verdict.divergent else GOOD_IDEA


def _quoted(text: str) -> str:
    """A text on one line, shortened at its front: its end is what counts."""
    flat = text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', "'")
    return without_control_tokens(flat if len(flat) <= _LONGEST else "…" + flat[-_LONGEST:])


def _described(outcome: PastPrompt) -> str:
    """What the models did, in a few words and without a list of logits."""
    verdict = outcome.verdict
    if verdict.kind == "bad_prompt":
        return "bad prompt, said a person"
    if verdict.evil_mass is None:
        return "could not be judged"
    rise = f"harmful next words {verdict.evil_mass.base:.0%} -> {verdict.evil_mass.merged:.0%}"
    top = itertools.islice((text.strip() for text in outcome.evil if text.strip()), _SHOWN)
    words = ", ".join(top)
    said = {
        "injection": "a harmful word came in",
        "promotion": "harmful words became likelier",
        "demotion": "safe words became rarer",
        "none": "the models agree",
    }[verdict.kind]
    return f"{said}; {rise}{f' ({words})' if words else ''}"


def feedback_notes(reviewed: Sequence[PastPrompt]) -> list[Note]:
    """One note a reviewed prompt, the most useful first."""
    notes = [(_priority(item), _note(item)) for item in reviewed]
    return [note for _, note in sorted(notes, key=lambda pair: -pair[0])]


def feedback_text(chosen: Fill) -> str:
    """The notes as a section of the instructions, with their counts; "" where there are none."""
    if not chosen.notes:
        return ""
    lines = ["What people said about earlier prompts:"]
    for group, title in _TITLES.items():
        mine = [note.text for note in chosen.notes if note.group == group]
        if mine:
            lines += ["", f"{title} ({len(mine)}):", *(f"- {text}" for text in mine)]
    return "\n".join(lines)


def _priority(item: PastPrompt) -> float:
    base = {CORRECTION: 3000, REJECTED: 2000, EFFECTIVE: 1000, AGREEMENT: 0}[_group(item)]
    evil = sum(label == "evil" for label in item.human.values())
    return (
        base
        + 400 * bool(item.explanation)
        + 10 * min(evil, 9)
        + 200 * (item.prompt.generator == "human")
    )


def _group(item: PastPrompt) -> str:
    if item.rejected:
        return REJECTED
    if item.corrections:
        return CORRECTION
    return EFFECTIVE if item.verdict.flagged else AGREEMENT


def _note(item: PastPrompt) -> Note:
    group = _group(item)
    text = f'"{_quoted(own_words(item.prompt))}"'
    by = " (written by a person)" if item.prompt.generator == "human" else ""
    match group:
        case "rejected":
            said = "rejected"
        case "correction":
            shown = [
                f"'{text.strip()}' is {human}, not {judge}"
                for text, human, judge in item.corrections[:_SHOWN]
            ]
            said = f"{len(item.corrections)} corrected: {', '.join(shown)}"
        case _:
            evil = [text.strip() for text in item.evil[:_SHOWN]]
            said = f"harmful: {', '.join(evil)}" if evil else "nothing harmful"
    why = f"; {item.explanation}" if item.explanation else ""
    return Note(group=group, text=f"{text}{by} -> {said}{why}")


def fill(
    notes: Sequence[Note],
    *,
    budget: int,
    count: Callable[[str], int],
    most: int | None = None,
) -> Fill:
    """The notes that fit into a budget, so that every group has its say.

    Groups take turns: of each in order its best note that still fits, until nothing fits or nothing
    is left.

    Args:
        notes: The best of each group first; groups take turns in the order they first appear.
        budget: Tokens, at most.
    """
    waiting: dict[str, list[Note]] = {}
    for note in notes:
        waiting.setdefault(note.group, []).append(note)
    total = {group: len(listed) for group, listed in waiting.items()}
    taken: list[Note] = []
    tokens = 0
    while waiting and (most is None or len(taken) < most):
        for group in list(waiting):
            note = waiting[group].pop(0)
            if not waiting[group]:
                del waiting[group]
            cost = count(note.text) + 1
            if tokens + cost <= budget and (most is None or len(taken) < most):
                taken.append(note)
                tokens += cost
            elif tokens >= budget:
                waiting.clear()
                break
    used = {group: sum(note.group == group for note in taken) for group in total}
    return Fill(
        notes=tuple(note for group in total for note in taken if note.group == group),
        tokens=tokens,
        used=used,
        left_out={group: total[group] - used[group] for group in total},
    )
