"""``em-circuits probe``: where activations tell misaligned from aligned answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from em_circuits import experiments, report
from em_circuits.cli.options import OptionSet
from em_circuits.cli.output import emit, prints, table
from em_circuits.cli.responses import find_import
from em_circuits.cli.session import Session, pass_session
from em_circuits.experiments.requests import ProbeRequest

if TYPE_CHECKING:
    from em_circuits.experiments.probes import ProbeOutput


_request = OptionSet(ProbeRequest, omit=("seed",))


@click.command(epilog="Example: em-circuits probe em --folds 4")
@click.argument("name", required=False)
@_request
@prints("em_circuits.experiments.probes:ProbeOutput")
@pass_session
def probe(session: Session, name: str | None, as_json: bool, **options: Any) -> None:
    """Linear probes by component, layer and position, beside what they can move.

    NAME is an import of answers.  [default: the newest]
    """
    imported = find_import(session.root / "results" / "responses", name)
    request = _request.read(options, seed=session.seed)
    with session.workspace() as work:
        found = experiments.probes.probe_answers(work, imported, request)
    page = report.probes.write_probe_report(found)
    kind = experiments.probes.ProbeOutput
    emit(kind.model_validate(found.head(report=page)), as_json, describe_probes)


def describe_probes(found: ProbeOutput) -> Iterator[str]:
    """The best place of every component, and detectors beside levers."""
    yield (
        f"{found.request.model} model, {found.answers} answers to {found.questions} questions, "
        f"{found.request.folds} blocks; answer length alone {found.length_auroc:.2f}"
    )
    names = ("component", "layer", "head", "position", "auroc", "low", "high", "control", "style")
    yield table(names, [[getattr(line, name) for name in names] for line in found.best])
    if found.levers:
        yield f"\ndetector beside lever, on {found.held_out_questions} held-out questions"
        columns = ("component", "layer", "head", "detector", "share", "low", "high", "random")
        rows = [[getattr(line, name) for name in columns] for line in found.levers]
        yield table(
            ("component", "layer", "head", "detector", "shift removed", "low", "high", "random"),
            rows,
        )
    yield f"{'kept' if found.reused else 'written'}: {found.files['report']}"
