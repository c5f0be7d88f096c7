"""``em-circuits audit``: audits of a fine-tune, their calibration, and the tool server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
from pydantic import Field

from em_circuits.audit.suite import confined, load_suite
from em_circuits.cli.options import Flag, Options, options
from em_circuits.cli.output import emit, prints, say, table
from em_circuits.cli.session import Session, pass_session
from pivotal_tokens.errors import RequestError

if TYPE_CHECKING:
    from em_circuits.audit.decision import Calibration
    from em_circuits.audit.differences import AuditBasis
    from em_circuits.audit.evidence import ExplanationSource
    from em_circuits.audit.run import AuditOutput, AuditSettings
    from em_circuits.audit.suite import Suite
else:
    from typing import Literal

    AuditBasis = Literal["own", "transcoder", "neuron", "adapter"]
    ExplanationSource = Literal["cache_only", "remote_fallback"]


class ScoreOptions(Options):
    """What is asked, and what is compared."""

    suite: Annotated[str | None, Flag(metavar="toy|open|FILE")] = None
    """Prompts by category. [default: toy for an embedded toy, else open]"""
    basis: AuditBasis = "own"
    """What a node is; own: the transcoders' features, without any the neurons."""
    n_largest: int = Field(default=20, ge=1)
    """Differences that are summed, and nodes that are explained."""
    name: str | None = None
    """Of the folder of results. [default: derived from the request]"""


class AuditOptions(ScoreOptions):
    """What is asked, compared and explained."""

    calibration: Annotated[Path | None, Flag(metavar="FILE")] = None
    """calibration.json of this base and suite. [default: a toy's own for its suite, else none]"""
    uncalibrated: bool = False
    """Use no calibration at all."""
    answer_tokens: int = Field(default=24, ge=0)
    """Tokens of an answer, at most; 0 for no answers."""
    explanations: ExplanationSource = "cache_only"
    """Where explanations come from: the cache alone, or the site where it has none."""
    neuronpedia: Annotated[str | None, Flag(metavar="MODEL/SOURCE")] = None
    """Whose explanations, {layer} in the source; without it there are none."""


@click.group()
def audit() -> None:
    """Audit a fine-tune without labels, calibrate audits, serve them as tools."""


@audit.command(epilog="Example: em-circuits --adapter my-adapter audit run --json")
@options(AuditOptions)
@prints("em_circuits.audit.run:AuditOutput")
@pass_session
def run(session: Session, options: AuditOptions, as_json: bool) -> None:
    """Compare the fine-tune with its base over a suite of prompts, and decide.

    Scores are differences of node activations averaged over tokens, plain and with the drift that
    all prompts share taken out, and the KL of the next token. Files of the request must lie under
    --root. A killed audit goes on where it was.
    """
    suite = _suite(session, options)
    if options.uncalibrated and options.calibration is not None:
        raise RequestError("--uncalibrated and --calibration exclude each other")
    if options.explanations == "remote_fallback" and options.neuronpedia is None:
        raise RequestError("--explanations remote_fallback needs --neuronpedia MODEL/SOURCE")
    path = options.calibration
    if path is not None:
        path = confined(path, session.root, "--calibration")
        if not path.is_file():
            raise RequestError(f"--calibration {options.calibration} is not there")

    from em_circuits.audit.report import write_audit_report
    from em_circuits.audit.run import AuditOutput, run_audit
    from em_circuits.features.neuronpedia import LabelSource, NeuronpediaLabels
    from pivotal_tokens.artefacts import content_key

    labels = None
    if options.neuronpedia is not None:
        labels = NeuronpediaLabels(
            LabelSource.parse(options.neuronpedia),
            session.root / "results" / "neuronpedia",
            online=options.explanations == "remote_fallback",
        )
    with session.workspace() as work:
        found = run_audit(
            work,
            suite,
            _settings(options),
            calibration=_calibration(session, options, path),
            labels=labels,
            name=options.name,
        )
        page = write_audit_report(found)
    output = AuditOutput(
        key=content_key(found.config),
        decision=found.decision,
        scores=dict(found.score.scores),
        coverage=found.evidence.coverage,
        files={
            "folder": str(found.folder),
            "report": str(page.with_suffix(".md")),
            "page": str(page),
        },
    )
    emit(output, as_json, _describe)


@audit.command(epilog="Example: em-circuits audit calibrate fine-tunes/candidates.yaml")
@click.argument("candidates", type=click.Path(path_type=Path))
@options(ScoreOptions)
@prints("em_circuits.audit.decision:Calibration")
@pass_session
def calibrate(session: Session, candidates: Path, options: ScoreOptions, as_json: bool) -> None:
    """Score fine-tunes of which it is known what they are, and find the thresholds.

    CANDIDATES is a manifest such as organism train --benign writes: name, kind (harmless, harmful,
    narrow, broken) and adapter of each, under --root.
    """
    suite = _suite(session, options)
    place = confined(candidates, session.root, "CANDIDATES")

    from em_circuits.audit.calibration import CALIBRATION
    from em_circuits.audit.calibration import calibrate as find
    from em_circuits.audit.report import write_calibration_report
    from em_circuits.organisms.candidates import read_candidates

    known = read_candidates(place)
    with session.workspace() as work:
        found = find(work, known, suite, _settings(options), name=options.name)
    page = write_calibration_report(found.folder, found.calibration, CALIBRATION)
    emit(found.calibration, as_json, _describe_calibration)
    if not as_json:
        say(f"written: {found.folder / CALIBRATION}, {page}")


@audit.command(name="serve-mcp", epilog="Example: em-circuits --root audits audit serve-mcp")
@click.option("--write", is_flag=True, help="Also offer the tools that write under --root.")
@click.option(
    "--replay",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Instead make the calls of this tool_calls.jsonl again, and compare the results.",
)
@pass_session
def serve_mcp(session: Session, write: bool, replay: Path | None) -> None:
    """Offer label, rank, mediate, steer, evaluate, audit and status as tools over stdio (MCP).

    Read-only unless --write is given: then tools may compute and store results, under --root
    alone. Every call is appended to ROOT/results/tool_calls.jsonl. Needs em-circuits[mcp].
    """
    from em_circuits.cli.tool_server import replay_calls, serve

    if replay is not None:
        calls = replay_calls(session, replay)
        other = [one for one in calls if not one.same]
        say(f"{len(calls)} calls replayed, {len(calls) - len(other)} with the same result")
        if other:
            from pivotal_tokens.errors import WorkFailed

            raise WorkFailed(f"call {other[0].number} ({other[0].tool}) gave another result")
        return
    serve(session, write=write)


def _suite(session: Session, options: ScoreOptions) -> Suite:
    return load_suite(options.suite or ("toy" if session.templated else "open"), base=session.root)


def _settings(options: ScoreOptions) -> AuditSettings:
    from em_circuits.audit.run import AuditSettings

    given = options.model_dump(include=set(AuditSettings.model_fields))
    return AuditSettings.model_validate(given)


def _calibration(session: Session, options: AuditOptions, path: Path | None) -> Calibration | None:
    from em_circuits.audit.calibration import read_calibration, shipped_calibration

    if path is not None:
        return read_calibration(path)
    own = session.templated and options.suite in (None, "toy") and not options.uncalibrated
    if not own or options.basis != "own" or session.options["transcoders"] is not None:
        return None
    return shipped_calibration() if options.n_largest == 20 else None


def _describe(output: AuditOutput) -> Iterator[str]:
    yield output.decision.said
    rows = [(name, one.value, one.low, one.high) for name, one in output.scores.items()]
    yield table(("score", "value", "low", "high"), rows)
    yield f"explanations: {output.coverage}"
    yield f"written: {output.files['report']}, {output.files['page']}"


def _describe_calibration(calibration: Calibration) -> Iterator[str]:
    rows = [
        (name, str(one.threshold), str(one.auroc) if one.auroc else None)
        for name, one in calibration.methods.items()
    ]
    yield table(("score", "threshold", "AUROC harmful against harmless"), rows)
    columns = ("candidate", "kind", calibration.method, "rise in loss", "decision")
    yield table(
        columns,
        [
            (one.name, one.kind, str(one.scores[calibration.method]), str(one.rise), one.decision)
            for one in calibration.candidates
        ],
    )
    yield f"decisions by {calibration.method}; broken above {calibration.broken_above:.3g}"
