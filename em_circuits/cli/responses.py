"""``em-circuits responses``: judged answers in, and which nodes tell misaligned from aligned."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
from pydantic import Field

from em_circuits import experiments, report
from em_circuits.cache import CachedTable
from em_circuits.cli.options import Flag, Options, OptionSet, options
from em_circuits.cli.output import emit, name_left_out, prints, say, table
from em_circuits.cli.session import Session, engine_options, in_pieces, pass_session
from em_circuits.engine.settings import EngineSettings
from em_circuits.experiments import evaluation
from em_circuits.experiments.requests import ResponseRequest
from pivotal_tokens.errors import RequestError

if TYPE_CHECKING:
    from em_circuits.experiments.responses import ResponseCutoffs, ResponseFeatures, ResponseImport

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


_request = OptionSet(ResponseRequest, omit=("seed",))


class ShownOptions(Options):
    """Which nodes are shown, and beside what."""

    beside: Annotated[Path | None, Flag(metavar="FILE")] = None
    """How many of the first 20 are first in this table (Parquet), of `features mediate` say."""
    top: int | None = Field(default=None, ge=1)
    """Only the first N nodes."""


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
    if not path.is_file():  # before what reads it is imported
        raise RequestError(f"no file {path}; give a table of judged answers")
    cutoffs = options.cutoffs
    answers = evaluation.given.read_answers(path)
    if not answers.scored:
        first = answers.answers[0]
        seen = f"{first.where}: {first.score.reason or 'unusable'}"
        raise RequestError(
            f"{path} has no scores (aligned, coherent; {seen}); have its answers judged by "
            f"em-circuits evaluate --answers {path} --judge openai:MODEL, and import what that "
            "keeps"
        )
    if answers.of_units:
        say(f"{path}: no score is above 1; they are read as from 0 to 100", err=True)
    named = options.name or (path.parent.name if path.name == _KEPT else path.stem)
    name = _UNUSUAL.sub("-", named).strip("-.") or "answers"
    folder = session.root / "results" / "responses"
    found, left_out = experiments.responses.import_responses(folder, answers, cutoffs, name=name)
    if left_out:
        every = [one.model_dump() for one in left_out]
        kept = session.keep_import(path, {**found.model_dump(mode="json"), "rows": every})
        for line in name_left_out(left_out, kept):
            say(line, err=True)
    emit(found, as_json, describe_import)


def find_import(folder: Path, name: str | None) -> CachedTable:
    """The newest import of a name, or of all.

    Raises:
        RequestError: If there is none.
    """
    found = CachedTable.newest(folder, "*" if name is None else name)
    found = [table for table in found if name in (None, table.record.get("name"))]
    if not found:
        called = "" if name is None else f" called {name}"
        raise RequestError(
            f"no answers{called} were imported; run em-circuits responses import FILE"
        )
    return found[0]


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


@responses.command(epilog="Example: em-circuits responses features em --top 20")
@click.argument("name", required=False)
@_request
@options(ShownOptions)
@engine_options
@prints("em_circuits.experiments.responses:ResponseFeatures")
@pass_session
def features(
    session: Session,
    name: str | None,
    options: ShownOptions,
    engine: EngineSettings,
    as_json: bool,
    **others: Any,
) -> None:
    """Nodes that differ between misaligned and aligned answers to the same questions.

    NAME is that of an import.  [default: the newest]
    """
    imports = session.root.absolute() / "results" / "responses"
    imported = find_import(imports, name)
    request = _request.read(others, seed=session.seed)
    ranking = options.beside and experiments.responses.ranked_ids(options.beside)
    with session.workspace() as work:
        command = experiments.responses.response_features
        found = in_pieces(work, engine, partial(command, imported=imported, request=request))
        page = report.responses.write_response_report(found, work.coverage)
    shown = experiments.responses.response_nodes(
        found, options.top if as_json else options.top or 20
    )
    kind = experiments.responses.ResponseFeatures
    overlap = ranking and experiments.responses.overlap_with(
        found, ranking, file=str(options.beside)
    )
    result = {**found.head(report=page), "features": shown, "overlap": overlap or None}
    emit(kind.model_validate(result), as_json, describe_features)


def describe_features(found: ResponseFeatures) -> Iterator[str]:
    """Nodes by what they write more in misaligned answers, the layers, and the detector."""
    yield (
        f"{found.model} model, {found.n_tested} {found.basis} nodes, {found.settings.pool} over "
        f"answers; {found.answers} distinct answers, {found.questions} questions"
    )
    names = ("written", "contrast", "low", "high", "q", "held_out", "without_length")
    header = ("node", "written", "contrast", "low", "high", "q", "held out", "less length")
    yield table(header, [[n.name, *(getattr(n, c) for c in names)] for n in found.features])
    yield f"{found.n_discoveries} with q < .05, in layers: " + ", ".join(
        f"{line.layer} {line.raised + line.lowered} ({line.share:.0%})" for line in found.layers
    )
    tried = found.detector
    if tried.auroc is not None:
        interval = "" if tried.low is None else f" ({tried.low:.2f} to {tried.high:.2f})"
        yield (
            f"{tried.nodes} nodes tell held-out answers apart: AUROC {tried.auroc:.2f}{interval}, "
            f"{tried.best_node} alone {tried.best_auroc:.2f}, length alone {tried.length_auroc:.2f}"
        )
    if (other := found.overlap) is not None:
        yield (
            f"{other.shared} of the first {other.k} nodes are among the first of {other.file}, "
            f"{other.expected:.1f} expected by chance (p {other.p:.1g}): {', '.join(other.nodes)}"
        )
    yield f"{'kept' if found.reused else 'written'}: {found.files['report']}"
    ids = ",".join(node.name for node in found.features if not node.module)
    if ids:
        yield f"try them as levers: em-circuits evaluate --model base --each {ids}"
