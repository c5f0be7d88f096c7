"""Answers of a model judge: form, token ids, quotes, and the majority of several votes.

A judge may say why by quoting spans of the prompt or of a token; what does not stand there letter
by letter is dropped and counted.

The label of a token is the one with more votes than any other; a tie is unsure. The flip rate is
the share of pairs of votes on the same token that differ: 0 for a judge that always says the same.

    ids_problem(answer, lists)                             # "" when every id stands there once
    labels, conflicts = labels_of(answer)
    majority([{7: "evil"}, {7: "evil"}, {7: "safe"}])      # {7: "evil"}
    flips([{7: "evil"}, {7: "evil"}, {7: "safe"}])         # (2, 3)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations

from pivotal_tokens.schema import Frozen, Label, NextTokenPair, Prompt

Labels = Mapping[int, Label]

MOST_QUOTES = 8
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


class QuotingAnswer(JudgeAnswer):
    """The form where the instructions ask for quotes."""

    quotes: tuple[str, ...] = ()


def found_quotes(
    quotes: Sequence[str], prompt: Prompt, lists: NextTokenPair
) -> tuple[tuple[str, ...], int]:
    """The quotes that stand in the prompt or in one of its tokens, and how many do not."""
    texts = [prompt.text, *(token.text for token in lists.merged.tokens)]
    there = [quote for quote in quotes if quote.strip() and any(quote in text for text in texts)]
    return tuple(dict.fromkeys(there))[:MOST_QUOTES], len(quotes) - len(there)


def ids_problem(answer: JudgeAnswer, lists: NextTokenPair) -> str:
    """What is wrong with the ids of an answer, in words that help to fix it; "" if nothing is."""
    listed = set(lists.token_ids)
    problems = []
    for name, given in (("base", answer.base), ("merged", answer.merged)):
        times = Counter(token.id for token in given)
        for what, ids in (
            ("missing", listed - times.keys()),
            ("not in the list", times.keys() - listed),
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


def majority(votes: Sequence[Labels]) -> dict[int, Label]:
    """The label of each token that every vote covers."""
    decided: dict[int, Label] = {}
    for token in votes[0] if votes else ():
        (first, times), *others = Counter(vote[token] for vote in votes).most_common()
        tied = bool(others) and others[0][1] == times
        decided[token] = "unsure" if tied else first
    return decided


def flips(votes: Sequence[Labels]) -> tuple[int, int]:
    """Pairs of votes on the same token that differ, and all such pairs."""
    differ = pairs = 0
    for one, other in combinations(votes, 2):
        shared = one.keys() & other.keys()
        pairs += len(shared)
        differ += sum(one[token] != other[token] for token in shared)
    return differ, pairs


def _listed(ids: set[int]) -> str:
    shown = ", ".join(map(str, sorted(ids)[:_SHOWN]))
    return shown + (f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else "")
