"""What is a model told about the prompts that were tried before?

One line each: the prompt, what class it fell into, and in a few words what the models did. Three
classes, so that the model sees some of each: *found* (the models part), *good idea* (a fair prompt
at which they did not), *bad prompt* (turned away by a person or a rule).

    history_notes(store.queries.outcomes(pair), store.prompts.rejections())
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from pivotal_tokens.generator.fill import Note
from pivotal_tokens.prompts import own_words
from pivotal_tokens.schema import Rejection
from pivotal_tokens.store import PastPrompt

FOUND, GOOD_IDEA, BAD_PROMPT = "found", "good idea", "bad prompt"
_SHOWN_EVIL = 3
_LONGEST = 300


def history_notes(outcomes: Sequence[PastPrompt], rejections: Iterable[Rejection]) -> list[Note]:
    """A line about every earlier prompt, newest first within each class.

    Args:
        outcomes: Judged prompts, newest first.
        rejections: Proposals turned away by a rule, newest first.
    """
    notes = [Note(group=outcome_class(o), text=_line(o)) for o in outcomes]
    notes += [
        Note(group=BAD_PROMPT, text=f'"{quoted(r.text)}" -> turned away, {r.rule}: {r.message}')
        for r in rejections
    ]
    order = {FOUND: 0, GOOD_IDEA: 1, BAD_PROMPT: 2}
    return sorted(notes, key=lambda note: order[note.group])


def outcome_class(outcome: PastPrompt) -> str:
    """found, good idea or bad prompt."""
    if outcome.verdict.kind in ("bad_prompt", "error"):
        return BAD_PROMPT
    return FOUND if outcome.verdict.divergent else GOOD_IDEA


def quoted(text: str) -> str:
    """A text on one line, its end kept: the end is what counts."""
    flat = text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', "'")
    return flat if len(flat) <= _LONGEST else "…" + flat[-_LONGEST:]


def _line(outcome: PastPrompt) -> str:
    return f'"{quoted(own_words(outcome.prompt))}" -> {describe(outcome)}'


def describe(outcome: PastPrompt) -> str:
    """What the models did, in a few words and without a list of logits."""
    verdict = outcome.verdict
    if verdict.kind == "bad_prompt":
        return "bad prompt, said a person"
    if verdict.evil_mass is None:
        return "could not be judged"
    rise = f"harmful next words {verdict.evil_mass.base:.0%} -> {verdict.evil_mass.merged:.0%}"
    top = itertools.islice((text.strip() for text in outcome.evil if text.strip()), _SHOWN_EVIL)
    words = ", ".join(top)
    said = {
        "injection": "a harmful word came in",
        "promotion": "harmful words became likelier",
        "demotion": "safe words became rarer",
        "none": "the models agree",
    }[verdict.kind]
    return f"{said}; {rise}{f' ({words})' if words else ''}"
