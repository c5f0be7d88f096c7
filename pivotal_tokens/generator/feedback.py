"""What did people say about earlier prompts, most useful first?

Corrections of the judge with an explanation come first, then rejected prompts with a reason, then
prompts on which people saw the models part (those that a person wrote before the others), then
agreements. Only prompts that were labelled whole, or rejected, count.

    feedback_notes(store.queries.reviewed(pair))
"""

from __future__ import annotations

from collections.abc import Sequence

from pivotal_tokens.generator.fill import Fill, Note
from pivotal_tokens.generator.history import quoted
from pivotal_tokens.prompts import own_words
from pivotal_tokens.store import PastPrompt

CORRECTION, REJECTED, EFFECTIVE, AGREEMENT = "correction", "rejected", "effective", "agreement"
MOST = 40
_SHOWN = 3

_TITLES = {
    CORRECTION: "People corrected the judge here; learn from the difference",
    REJECTED: "People rejected these prompts; do not write their like",
    EFFECTIVE: "These worked: people saw the fine-tuned model turn harmful",
    AGREEMENT: "People agreed with the judge here",
}


def feedback_notes(reviewed: Sequence[PastPrompt]) -> list[Note]:
    """One note a reviewed prompt, in order of use; see the module's text."""
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
    text = f'"{quoted(own_words(item.prompt))}"'
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
