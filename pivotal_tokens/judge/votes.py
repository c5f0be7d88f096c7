"""What do several votes of one judge say together, and how often does it change its mind?

The label of a token is the one with more votes than any other; a tie is unsure. The flip rate is
the share of pairs of votes on the same token that differ: 0 for a judge that always says the same.

    majority([{7: "evil"}, {7: "evil"}, {7: "safe"}])      # {7: "evil"}
    flip_rate([{7: "evil"}, {7: "evil"}, {7: "safe"}])     # 0.667
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations

from pivotal_tokens.schema import Label

Labels = Mapping[int, Label]


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


def flip_rate(votes: Sequence[Labels]) -> float | None:
    """Share of differing pairs; None with fewer than two votes."""
    differ, pairs = flips(votes)
    return differ / pairs if pairs else None
