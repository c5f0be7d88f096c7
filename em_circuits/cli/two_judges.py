"""Tables of an experiment under two judges, as `evaluate --rejudge` and `steer rejudge` print them.

yield from describe_two_judges(found, "texts", found.texts, rates=..., conclusions=...)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from em_circuits.cli.output import table

if TYPE_CHECKING:
    from em_circuits.experiments.two_judges import ConclusionOfTwo, RateOfTwo, TwoJudges


def describe_two_judges(
    found: TwoJudges,
    what: str,
    n: int,
    *,
    rates: Sequence[tuple[str, RateOfTwo]],
    conclusions: Sequence[tuple[str, ConclusionOfTwo]],
) -> Iterator[str]:
    """Rates under both judges, which conclusions change, and how far the judges agree.

    Args:
        what: What both read, `n` of them.
        rates: Each under its name.
        conclusions: Each under the name of its difference.
    """
    rows = [(name, r.before, r.after, r.scored_before, r.scored_after) for name, r in rates]
    yield from table(("rate", "before", "after", "scored", "scored after"), rows).splitlines()
    if conclusions:
        yield ""
        lines = [
            (
                name,
                f"{c.sign_before} {_points(c.before)}",
                f"{c.sign_after} {_points(c.after)}",
                "changed" if c.changed else "",
            )
            for name, c in conclusions
        ]
        yield from table(("difference", "before", "after", ""), lines).splitlines()
    agreed = "-" if found.agreement is None else f"{100 * found.agreement:.1f} %"
    yield ""
    yield f"judges: {found.judges[0]}, then {found.judges[1]}"
    yield f"both scored {found.both} of {n} {what} and agree on {agreed}"
    yield f"written: {found.folder}"


def _points(difference: float | None) -> str:
    return "" if difference is None else f"({100 * difference:+.1f})"
