"""How do divergence and agreement look to a person?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from em_circuits.cli.output import one_line, table

if TYPE_CHECKING:
    from pivotal_tokens.agreement import Estimate
    from pivotal_tokens.labels.agreement import AgreementReport, Comparison
    from pivotal_tokens.labels.divergence import Divergence, DivergenceRow


def divergence_json(found: Divergence, *, only_divergent: bool) -> dict[str, Any]:
    """The documented shape: totals, and a row per prompt and pair."""
    rows = found.divergent if only_divergent else found.rows
    return {
        "labels": found.labels,
        "totals": found.totals(),
        "pairs": found.pairs,
        "rows": [row.model_dump(mode="json") for row in rows],
    }


def describe_divergence(found: Divergence, *, only_divergent: bool) -> list[str]:
    """Status of every prompt under base and each fine-tuned model, masses and margins, totals."""
    from pivotal_tokens.labels.plots import pair_names

    totals = found.totals()
    rows = found.divergent if only_divergent else found.rows
    names = pair_names(found.pairs)
    lines = []
    for pair in dict.fromkeys(row.pair for row in rows):
        of_pair = [row for row in rows if row.pair == pair]
        header = ("prompt", "base", "merged", "", "evil mass", "margin", "text")
        lines += [f"base x {names.get(pair, pair) or 'merged'}"]
        lines += [table(header, [_cells(row) for row in of_pair]), ""]
    lines.append(
        f"{totals['divergent']} divergent of {totals['complete']} complete "
        f"({found.labels} labels); {totals['evil_in_both']} evil in both, "
        f"{totals['evil_in_base_only']} in base only, {totals['evil_in_neither']} in neither"
    )
    lines.append(
        f"{totals['unsure_cases']} would change with their unsure tokens evil; "
        f"{totals['incomplete']} incomplete, {totals['missing']} missing, "
        f"{totals['rejected']} rejected"
    )
    return lines


def _cells(row: DivergenceRow) -> tuple[str, ...]:
    mass = f"{row.evil_mass.base:.3f} {row.evil_mass.merged:.3f}" if row.evil_mass else "-"
    margins = [row.base.margin, row.merged.margin]
    margin = " ".join("-" if one is None else f"{one:+.2f}" for one in margins)
    mark = {True: "DIV", False: "no", None: "-"}[row.divergent] + "?" * row.unsure
    text = one_line(row.text, 16)
    return (row.prompt_id, str(row.base), str(row.merged), mark, mass, margin, text)


def describe_agreement(found: AgreementReport) -> list[str]:
    """A block per comparison."""
    lines = []
    blocks = (
        ("people", found.people),
        ("people and judges", found.judges),
        ("asked twice", found.steadiness),
    )
    for title, several in blocks:
        if several:
            lines.append(title)
            for one in several:
                lines += _comparison(one)
    if not lines:
        lines.append(
            "nothing to compare: it takes two who labelled every token of the same prompts blind"
        )
    if found.left_out:
        parts = ", ".join(f"{author} {number}" for author, number in found.left_out.items())
        lines.append(f"left out, labelled in part or not blind (prompts): {parts}")
    return lines


def _comparison(one: Comparison) -> Iterator[str]:
    found = one.agreement
    yield f"  {' / '.join(one_line(name, 34) for name in one.raters)}"
    yield f"    {found.items} tokens of {found.groups} prompts"
    estimates = (
        ("percent", found.percent),
        ("kappa", found.kappa),
        ("AC1", found.ac1),
        ("alpha", found.alpha),
    )
    for name, estimate in estimates:
        yield f"    {name:<8}{_estimate(estimate)}"


def _estimate(one: Estimate) -> str:
    if one.value is None:
        return "not defined: only one label was given"
    if one.low is None or one.high is None:
        return f"{one.value:6.3f}"
    return f"{one.value:6.3f}  [{one.low:.3f}, {one.high:.3f}]"
