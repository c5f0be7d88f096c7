"""Is a judge's answer about the tokens it was asked about, and what does it say of each?

answer = JudgeAnswer.model_validate_json(text)
problem = ids_problem(answer, lists)         # "" when every id stands there exactly once
labels, conflicts = labels_of(answer)
"""

from __future__ import annotations

from collections import Counter

from pivotal_tokens.schema import Frozen, Label, NextTokenPair

_SHOWN = 8


class AnsweredToken(Frozen):
    """One token's label."""

    id: int
    label: Label


class JudgeAnswer(Frozen):
    """The form in which a judge answers."""

    base: tuple[AnsweredToken, ...]
    merged: tuple[AnsweredToken, ...]
    summary: str
    reason: str


def ids_problem(answer: JudgeAnswer, lists: NextTokenPair) -> str:
    """What is wrong with the ids of an answer, in words that help to mend it; "" if nothing is."""
    asked = set(lists.token_ids)
    problems = []
    for name, given in (("base", answer.base), ("merged", answer.merged)):
        times = Counter(token.id for token in given)
        for what, ids in (
            ("missing", asked - times.keys()),
            ("not in the list", times.keys() - asked),
            ("twice", {token for token, n in times.items() if n > 1}),
        ):
            if ids:
                problems.append(f"{name}: {what} {_listed(ids)}")
    return "; ".join(problems)


def labels_of(answer: JudgeAnswer) -> tuple[dict[int, Label], int]:
    """Token id -> label, and how many tokens were answered differently in the two lists.

    Such a token is unsure: a judge that contradicts itself has not decided.
    """
    base = {token.id: token.label for token in answer.base}
    merged = {token.id: token.label for token in answer.merged}
    labels: dict[int, Label] = {
        token: label if merged[token] == label else "unsure" for token, label in base.items()
    }
    return labels, sum(merged[token] != label for token, label in base.items())


def _listed(ids: set[int]) -> str:
    shown = ", ".join(map(str, sorted(ids)[:_SHOWN]))
    return shown + (f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else "")
