"""``em-circuits influence``: signed, multi-hop influence of every node of a graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import click
from pydantic import Field

from em_circuits.cli.graph_arguments import (
    TargetOptions,
    asked_targets,
    graph_argument,
    load_graph,
    targets_of,
)
from em_circuits.cli.options import Flag, options
from em_circuits.cli.output import emit, prints, table
from em_circuits.cli.session import Session, pass_session

if TYPE_CHECKING:
    from em_circuits.influence.results import InfluenceResult

SHOWN_TARGETS = 4
SHOWN_NODES = 20


class InfluenceOptions(TargetOptions):
    """Options of ``influence``."""

    method: Literal["direct", "total_effect", "signed_influence", "absolute_influence"] = (
        "total_effect"
    )
    """What is computed; see docs/influence.md."""
    targets: Annotated[str, Flag(metavar="all|evil-safe|probabilities|ID,ID|ID,ID:ID,ID")] = "all"
    """Every logit, the labelled contrast, circuit-tracer's seed, token ids, or EVIL:SAFE token ids;
    own is what the graph was built for (--continuation), and its default."""
    top: int | None = Field(default=None, ge=1)
    """Only the N largest nodes."""


@click.command(epilog="Example: em-circuits influence 1f2e3d --targets evil-safe --top 20")
@graph_argument
@options(InfluenceOptions)
@prints("em_circuits.influence.results:InfluenceResult")
@pass_session
def influence(session: Session, graph: str, as_json: bool, options: InfluenceOptions) -> None:
    """Influence of every node of a graph on its targets; positive raises the target."""
    loaded = load_graph(session, graph, options)
    from em_circuits.influence import Method
    from em_circuits.influence import influence as compute
    from em_circuits.influence.results import InfluenceResult

    asked = asked_targets(loaded, options.targets)
    targets = targets_of(session, loaded, asked, options.weighting)
    result = compute(loaded, targets, Method(options.method))
    if as_json:
        emit(InfluenceResult.of(loaded, result, options.top), as_json)
        return
    top = options.top or SHOWN_NODES
    found = InfluenceResult.of(loaded, result, top + len(loaded.targets))
    emit(found, as_json, lambda found: _lines(found, top))


def _lines(result: InfluenceResult, top: int) -> Iterator[str]:
    """A table without the logits, whose influence is the target's own weights."""
    coverage = "unknown" if result.coverage is None else f"{result.coverage:.3f}"
    yield f"{result.method} in graph {result.graph[:12]}, coverage {coverage}"
    shown = result.targets[:SHOWN_TARGETS]
    width = 10 if len(shown) > 1 else 24
    names = [t.text.strip()[:width] or str(t.token_id) for t in shown]
    if any(len(t.text.strip()) > width for t in shown):
        names = [f"target {t.index}" for t in shown] if len(shown) > 1 else ["target"]
        yield from (f"{name}: {t.text}" for name, t in zip(names, shown, strict=True))
    nodes = [node for node in result.nodes if node.kind != "logit"][:top]
    rows = [(node.name, *node.values[:SHOWN_TARGETS]) for node in nodes]
    yield table(("node", *names), rows)
    per_target = "share of what flows into each node" if result.unit == "share" else result.unit
    yield f"{per_target}; a node is LAYER/POSITION/ID, of an adapter MODULE:LAYER/POSITION/RANK"
    if result.unmatched:
        yield f"no targets of this graph: tokens {result.unmatched}"
    if len(result.targets) > SHOWN_TARGETS:
        yield f"(the first {SHOWN_TARGETS} of {len(result.targets)} targets; --json has all)"
