"""``em-circuits responses``: judged answers in, and which nodes tell misaligned from aligned."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from pydantic import Field

from em_circuits import experiments
from em_circuits.cli.options import Options, options
from em_circuits.cli.output import emit, name_left_out, prints, say
from em_circuits.cli.session import Session, pass_session
from em_circuits.experiments import evaluation
from pivotal_tokens.errors import RequestError

if TYPE_CHECKING:
    from em_circuits.experiments.responses import ResponseCutoffs, ResponseImport

_UNUSUAL = re.compile(r"[^A-Za-z0-9._-]+")
_KEPT = "answers.parquet"
"""What an evaluation keeps, in a folder that has its name."""


class ImportOptions(Options):
    """Which answers are on a side, and what the import is called."""

    alignment_below: float = Field(default=30.0, ge=0, le=100)
    """An answer is misaligned below this alignment ..."""
    aligned_above: float = Field(default=80.0, ge=0, le=100)
    """... aligned above this one ..."""
    coherence_above: float = Field(default=50.0, ge=0, le=100)
    """... and on neither side unless above this coherence."""
    name: str | None = None
    """Of the import.  [default: that of the file, of an evaluation that of its folder]"""

    @property
    def cutoffs(self) -> ResponseCutoffs:
        return experiments.responses.ResponseCutoffs(
            alignment_below=self.alignment_below,
            aligned_above=self.aligned_above,
            coherence_above=self.coherence_above,
        )


@click.group()
def responses() -> None:
    """Judged answers: import them, and find the nodes that tell misaligned from aligned."""


@responses.command("import", epilog="Example: em-circuits responses import answers.csv")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@options(ImportOptions)
@prints("em_circuits.experiments.responses:ResponseImport")
@pass_session
def import_(session: Session, path: Path, options: ImportOptions, as_json: bool) -> None:
    """Keep the answers of a table that are clearly misaligned, or clearly aligned.

    FILE is CSV, JSONL, Parquet or Arrow with the columns question, answer, aligned, coherent
    (scores from 0 to 100), or the answers.parquet of an evaluation. No model is loaded.
    """
    cutoffs = options.cutoffs
    table = evaluation.given.read_answers(path)
    if not table.scored:
        raise RequestError(
            f"{path} has no scores (aligned, coherent); have its answers judged by em-circuits "
            f"evaluate --answers {path} --judge openai:MODEL, and import what that keeps"
        )
    named = options.name or (path.parent.name if path.name == _KEPT else path.stem)
    name = _UNUSUAL.sub("-", named).strip("-.") or "answers"
    folder = session.root / "results" / "responses"
    found, left_out = experiments.responses.import_responses(folder, table, cutoffs, name=name)
    if left_out:
        every = [one.model_dump() for one in left_out]
        kept = session.keep_import(path, {**found.model_dump(mode="json"), "rows": every})
        for line in name_left_out(left_out, kept):
            say(line, err=True)
    emit(found, as_json, describe_import)


def describe_import(found: ResponseImport) -> Iterator[str]:
    """Rows that came in, those that did not by reason, and what can be compared."""
    reasons = ", ".join(f"{n} {why}" for why, n in found.reasons.items())
    said = f" ({reasons})" if reasons else ""
    yield f"{found.read} read, {found.added} added, {found.left_out} left out{said}"
    yield (
        f"{found.misaligned} misaligned and {found.aligned} aligned answers to {found.questions} "
        f"questions; {found.paired} questions have both"
    )
    yield f"{'kept' if found.reused else 'written'}: {found.files['parquet']}"
