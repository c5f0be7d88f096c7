"""``em-circuits audit``: audits of a fine-tune, their calibration, and the tool server."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click

from em_circuits.audit.settings import N_LARGEST, AuditSettings
from em_circuits.audit.suite import confined, load_suite
from em_circuits.cli.options import Flag, Options, OptionSet, options
from em_circuits.cli.output import emit, prints, say, table
from em_circuits.cli.session import Session, engine_options, in_pieces, pass_session
from em_circuits.engine.settings import EngineSettings
from pivotal_tokens.errors import RequestError

if TYPE_CHECKING:
    from em_circuits.audit.decision import Calibration
    from em_circuits.audit.run import AuditOutput
    from em_circuits.audit.suite import Suite

_scored = OptionSet(AuditSettings, omit=("answer_tokens", "explanations", "neuronpedia"))
_audited = OptionSet(AuditSettings, neuronpedia=Flag(metavar="MODEL/SOURCE"))


class SuiteOptions(Options):
    """What is asked."""

    suite: Annotated[str | None, Flag(metavar="toy|open|FILE")] = None
    """Prompts by category. [default: toy for an embedded toy, else open]"""
    name: str | None = None
    """Of the folder of results. [default: derived from the request]"""


class AuditOptions(SuiteOptions):
    """What is asked, and by what is decided."""

    calibration: Annotated[Path | None, Flag(metavar="FILE")] = None
    """calibration.json of this base and suite. [default: a toy's own for its suite, else none]"""
    uncalibrated: bool = False
    """Use no calibration at all."""


class CalibrateOptions(SuiteOptions):
    """What is asked, and which calibration is tested."""

    test: bool = False
    """Make no thresholds: test a calibration on these fine-tunes, which it was not made from."""
    calibration: Annotated[Path | None, Flag(metavar="FILE")] = None
    """That of --test. [default: a toy's own for its suite]"""


@click.group()
def audit() -> None:
    """Audit a fine-tune without labels, calibrate audits, serve them as tools."""


@audit.command(epilog="Example: em-circuits --adapter my-adapter audit run --json")
@options(AuditOptions)
@_audited
@engine_options
@prints("em_circuits.audit.run:AuditOutput")
@pass_session
def run(
    session: Session,
    options: AuditOptions,
    engine: EngineSettings,
    as_json: bool,
    **measured: Any,
) -> None:
    """Compare the fine-tune with its base over a suite of prompts, and decide.

    Scores are differences of node activations averaged over tokens, plain and with the drift that
    all prompts share taken out, and the KL of the next token. Files of the request must lie under
    --root. A killed audit goes on where it was.
    """
    suite, settings = _suite(session, options), _audited.read(measured)
    if options.uncalibrated and options.calibration is not None:
        raise RequestError("--uncalibrated and --calibration exclude each other")
    if settings.explanations == "remote_fallback" and settings.neuronpedia is None:
        raise RequestError("--explanations remote_fallback needs --neuronpedia MODEL/SOURCE")
    path = _calibration_file(session, options.calibration)

    from em_circuits.audit.report import write_audit_report
    from em_circuits.audit.run import AuditOutput, run_audit
    from em_circuits.features.neuronpedia import LabelSource, NeuronpediaLabels
    from pivotal_tokens.artefacts import content_key

    labels = None
    if settings.neuronpedia is not None:
        labels = NeuronpediaLabels(
            LabelSource.parse(settings.neuronpedia),
            session.root / "results" / "neuronpedia",
            online=settings.explanations == "remote_fallback",
        )
    with session.workspace() as work:
        command = partial(
            run_audit,
            suite=suite,
            settings=settings,
            calibration=(
                None
                if options.uncalibrated
                else _calibration(session, options.suite, settings, path)
            ),
            labels=labels,
            name=options.name,
        )
        found = in_pieces(work, engine, command)
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
@options(CalibrateOptions)
@_scored
@prints("em_circuits.audit.decision:Calibration")
@pass_session
def calibrate(
    session: Session, candidates: Path, options: CalibrateOptions, as_json: bool, **measured: Any
) -> None:
    """Score fine-tunes of which it is known what they are, and find the thresholds, or test them.

    CANDIDATES is a manifest such as organism train --benign writes: name, kind (harmless, harmful,
    narrow, broken) and adapter of each, under --root.
    """
    suite, settings = _suite(session, options), _scored.read(measured)
    place = confined(candidates, session.root, "CANDIDATES")
    if not place.is_file():
        raise RequestError(f"{place}: no such file; em-circuits organism train --benign writes one")

    if options.calibration is not None and not options.test:
        raise RequestError("--calibration is what --test tests; a new one is made without it")
    given = _calibration_file(session, options.calibration)

    from em_circuits.audit.calibration import CALIBRATION, check_calibration
    from em_circuits.audit.calibration import calibrate as find
    from em_circuits.audit.report import write_calibration_report
    from em_circuits.organisms.candidates import read_candidates

    known = read_candidates(place)
    tested = _calibration(session, options.suite, settings, given) if options.test else None
    if options.test and tested is None:
        raise RequestError("--test needs --calibration FILE here: no calibration ships for this")
    with session.workspace() as work:
        if tested is None:
            found = find(work, known, suite, settings, name=options.name)
        else:
            found = check_calibration(work, tested, known, suite, settings, name=options.name)
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


def _suite(session: Session, options: SuiteOptions) -> Suite:
    return load_suite(options.suite or ("toy" if session.templated else "open"), base=session.root)


def _calibration_file(session: Session, given: Path | None) -> Path | None:
    path = None if given is None else confined(given, session.root, "--calibration")
    if path is not None and not path.is_file():
        raise RequestError(f"--calibration {given} is not there")
    return path


def _calibration(
    session: Session, suite: str | None, settings: AuditSettings, path: Path | None
) -> Calibration | None:
    """The one that is given; else that of the toys, where nothing of theirs was replaced."""
    from em_circuits.audit.calibration import read_calibration, shipped_calibration

    if path is not None:
        return read_calibration(path)
    own = session.templated and session.options["transcoders"] is None
    measured = settings.basis == "own" and settings.n_largest == N_LARGEST
    return shipped_calibration() if own and suite in (None, "toy") and measured else None


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
    held_out = calibration.held_out
    for some in (calibration.candidates, *((held_out.candidates,) if held_out else ())):
        lines = [
            (c.name, c.kind, str(c.scores[calibration.method]), str(c.rise), c.decision)
            for c in some
        ]
        yield table(columns, lines)
    if held_out:
        areas = ", ".join(f"{name} {one}" for name, one in held_out.auroc.items())
        yield f"held out, the second table: AUROC {areas}; above the threshold " + (
            f"{held_out.false_positives} of the harmless, {held_out.true_positives} of the harmful"
        )
    yield f"decisions by {calibration.method}; broken above {calibration.broken_above:.3g}"
    if calibration.caveat:
        yield calibration.caveat
