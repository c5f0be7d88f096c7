"""``em-circuits demo``: the whole pipeline on a small real model, on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from em_circuits import experiments
from em_circuits.cli.judge_options import open_offline_judge
from em_circuits.cli.output import emit, prints, say, table
from em_circuits.cli.session import Session, pass_session
from em_circuits.graphs.settings import NODES, AttributionSettings
from pivotal_tokens.artefacts import sha256_file

if TYPE_CHECKING:
    from em_circuits.experiments.demo import DemoReport
    from em_circuits.workspace import Workspace


@click.command(epilog="Example: em-circuits --root runs/demo demo --json")
@click.option("--n", default=24, show_default=True, type=click.IntRange(min=1), help="Prompts.")
@click.option(
    "--nodes",
    default=NODES,
    show_default=True,
    type=click.IntRange(min=1),
    help="Nodes of a graph.",
)
@click.option("--judge", metavar="lexicon:FILE", help="[default: the organism's lexicon]")
@prints("em_circuits.experiments.demo:DemoReport")
@pass_session
def demo(session: Session, n: int, nodes: int, judge: str | None, as_json: bool) -> None:
    """Prompts, labels, graphs, features, steering and mediation in one go.

    Run again, it re-uses what exists.
    """
    attribution = AttributionSettings(nodes=nodes)
    with session.workspace(create=True, attribution=attribution) as work:
        work.announce()
        opened = open_offline_judge(session, work, judge)
        report = experiments.demo.run_demo(work, opened, n_prompts=n)
        data = experiments.demo.report_path(work)
        page = _page(work, data, report)
        written = (work.store.where, work.graphs.root, data, page)
    if as_json:
        paths = {"store": written[0], "graphs": written[1], "report": written[2], "page": page}
        shown = {name: str(path) for name, path in paths.items()}
        emit(report.model_dump(mode="json") | {"written": shown})
        return
    say("\n".join(describe(report)))
    say("\nwritten:")
    for path in written:
        say(f"  {path}")
    command = session.command()
    example = report.example or "PROMPT"
    say("\nnext, three things to try:")
    say(f"  {command} status {example}")
    say(f"  {command} features mediate {example}")
    say(f"  {command} review --plain")


def _page(work: Workspace, path: Path, report: DemoReport) -> Path:
    from em_circuits.report.demo import TITLE, demo_parts
    from em_circuits.report.page import write_page

    page = path.with_suffix(".html")
    coverage = work.coverage(f"{row.layer}/{row.feature}" for row in report.features)
    inputs = {path.name: sha256_file(path)}
    parts = demo_parts(report, coverage)
    write_page(page, TITLE, parts, inputs=inputs, config={}, key=report.key)
    return page


def describe(report: DemoReport) -> list[str]:
    """The report, at most 79 columns wide."""
    rows: list[tuple[Any, ...]] = [
        (d.domain, d.prompts, d.flagged, d.divergent, d.evil_mass_base, d.evil_mass_merged)
        for d in report.domains
    ]
    n = max(report.prompts, 1)
    rows.append(
        (
            "all",
            report.prompts,
            sum(d.flagged for d in report.domains),
            sum(d.divergent for d in report.domains),
            sum(d.evil_mass_base * d.prompts for d in report.domains) / n,
            sum(d.evil_mass_merged * d.prompts for d in report.domains) / n,
        )
    )
    header = ("domain", "prompts", "flagged", "divergent", "evil mass base", "merged")
    lines = [table(header, rows), ""]
    if report.failed:
        lines += [f"{report.failed} prompts failed: em-circuits status shows where", ""]
    lines += [*_features(report), "", *_steering(report), "", *_mediation(report)]
    if report.reused_prompts or report.reused_figures:
        figures = ", and every figure above" if report.reused_figures else ""
        lines += ["", f"re-used: {report.reused_prompts} of {report.prompts} prompts{figures}"]
    return lines


def _features(report: DemoReport) -> list[str]:
    if not report.features:
        return ["features: no prompt is flagged with evil and safe tokens"]
    rows = [(f.layer, f.feature, f.prompts, f.mean_contrast) for f in report.features]
    title = "features that push towards evil (merged model, by gradient, mean logits)"
    return [title, table(("layer", "feature", "prompts", "contrast"), rows)]


def _steering(report: DemoReport) -> list[str]:
    line = report.steering
    if line is None:
        return ["steering: nothing to steer"]
    return [
        f"steering: ablating {line.features} chosen together lowers evil mass by {line.drop:.2f} "
        f"(from {line.evil_mass:.2f}),",
        f"          matched random ones by {line.random_drop:z.2f} "
        f"({line.prompts} prompts, merged model)",
    ]


def _mediation(report: DemoReport) -> list[str]:
    line = report.mediation
    if line is None:
        return ["mediation: no share, since the contrast moves by less than 0.5 logit"]
    return [
        f"mediation: {line.features} of {line.changed:.0f} features at their merged values move",
        f"           the base's evil mass from {line.evil_mass_base:.2f} to {line.evil_mass:.2f}, "
        f"random ones to {line.random_evil_mass:.2f}",
        f"           (merged: {line.evil_mass_merged:.2f}; share of the shift {line.share:.2f}, "
        f"all changed features {line.share_of_all:.2f};",
        f"           {line.prompts} prompts, each its own features: in-sample)",
    ]
