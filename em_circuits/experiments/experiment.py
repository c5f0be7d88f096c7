"""One planned experiment: its rows, continuations and summary, and the folder that holds them.

Sweep, transfer and evaluation are the same thing: a plan, pieces of work in a journal, a row for
everything that was measured, a summary over the rows, a report.

    results/experiments/NAME/       plan.yaml, journal.jsonl, rows.parquet, rollouts.parquet,
                                    summary.json, report.html, report.md
    results/evaluations/NAME/       the same with answers.parquet

    experiment = run_sweep(cases, plan, judge)
    experiment.summary.conditions[0].net, experiment.rows[0].evil_mass, experiment.folder
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel

from em_circuits.cache import rows_table, write_results
from pivotal_tokens.schema import Frozen, Label

ROWS, ROLLOUTS = "rows.parquet", "rollouts.parquet"


class Cell(Frozen):
    """One cell of a plan: what is done to which features, where."""

    condition: str
    """The cell in words, the same on every prompt."""
    combination: str
    """``#1`` alone, ``#1+#3``, ``first 2``, ``all 5``; numbers are ranks."""
    mode: str
    value: float | None = None
    unit: str
    place: str


class Measurement(Cell):
    """One arm of a cell on one prompt; what was not measured is None."""

    FILE: ClassVar[str] = ROWS

    prompt_id: str
    domain: str | None = None
    features: str
    control: str
    draw: int
    evil_mass: float
    evil_mass_unsteered: float
    contrast: float | None = None
    contrast_unsteered: float | None = None
    verdict: str
    """Beside the un-steered base, by the prompt's labels."""
    verdict_unsteered: str
    kl: float
    """From the un-steered model, of the next token, in nats."""
    boosted_token: int
    """Whose probability rises most."""
    boosted_text: str
    boosted_by: float
    off_target_kl: float | None = None
    n_rollouts: int | None = None
    unscored: int | None = None
    """Continuations that the judge could not label; they count in no rate."""
    evil_rate: float | None = None
    safe_rate: float | None = None
    perplexity: float | None = None
    repetition: float | None = None
    forced_evil_rate: float | None = None
    after_kl: float | None = None


class RolloutRow(Frozen):
    """One continuation."""

    FILE: ClassVar[str] = ROLLOUTS

    prompt_id: str
    condition: str
    control: str
    draw: int
    sample: int
    text: str
    token: str | None = None
    """Its first token, which a judge reads apart; None in experiments before 2026-11-29."""
    label: Label | None
    reason: str = ""
    log_likelihood: float | None = None
    repetition: float | None = None


class Piece(Frozen):
    """What one piece of work yields."""

    rows: tuple[Measurement, ...] = ()
    rollouts: tuple[RolloutRow, ...] = ()


Summary = TypeVar("Summary", bound=BaseModel)


@dataclass(frozen=True)
class Experiment(Generic[Summary]):
    """A finished experiment.

    Attributes:
        folder: Where it stands.
        record: Everything the rows follow from.
        summary: Figures over the rows.
        rows: `Measurement`, or the answers of an evaluation.
        rollouts: Continuations.
    """

    folder: Path
    record: Mapping[str, Any]
    summary: Summary
    rows: tuple[Any, ...]
    rollouts: tuple[RolloutRow, ...] = ()

    def store(self, *kinds: type[BaseModel]) -> Experiment[Summary]:
        """Write tables and summary, each with its provenance; `kinds` are those of the rows."""
        tables = {
            kind.FILE: rows_table(kind, rows)  # type: ignore[attr-defined]
            for kind, rows in zip(kinds, (self.rows, self.rollouts), strict=False)
        }
        summary = self.summary.model_dump(mode="json")
        write_results(self.folder, tables, summary, config=dict(self.record))
        return self

    @property
    def provenance(self) -> dict[str, Any]:
        """Inputs of every artefact of it."""
        return {"inputs": {"pair": self.record.get("pair")}, "config": dict(self.record)}
