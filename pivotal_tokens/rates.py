"""Shares of trials, and the difference of two, with their 95 % intervals.

wilson(4, 4)                  # (.51, 1.0)
newcombe(4, 4, 0, 4)          # (.31, 1.0): 4 of 4 against 0 of 4
"""

from __future__ import annotations

import math

Interval = tuple[float | None, float | None]
_Z = 1.959963984540054


def wilson(successes: float | int, n: int) -> Interval:
    """Wilson's 95 % interval of a share of `n` trials; None without any.

    Successes may be fractional (a mean rate times n), which scipy's does not take.

    Source: Wilson (1927), J. Am. Stat. Assoc. 22:209.
    """
    if n == 0:
        return None, None
    p, z2 = successes / n, _Z**2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def newcombe(successes: int, n: int, others: int, m: int) -> Interval:
    """95 % interval of the difference of two independent shares, `successes / n - others / m`.

    Newcombe's hybrid score interval: it is right with few trials and with shares of 0 and 1. None
    where one has no trials.

    Source: Newcombe (1998), Statistics in Medicine 17:873, method 10.
    """
    low, high = wilson(successes, n)
    other_low, other_high = wilson(others, m)
    if low is None or high is None or other_low is None or other_high is None:
        return None, None
    p, q = successes / n, others / m
    return (
        p - q - math.hypot(p - low, other_high - q),
        p - q + math.hypot(high - p, q - other_low),
    )
