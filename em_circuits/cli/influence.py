"""``em-circuits influence``: signed, multi-hop influence of every node of a graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import click
from pydantic import Field

from em_circuits.cli.graph_arguments import TargetOptions, graph_argument, load_graph, targets_of
from em_circuits.cli.options import Flag, options
from em_circuits.cli.output import emit, prints, table
from em_circuits.cli.session import Session, pass_session

if TYPE_CHECKING:
    from em_circuits.influence.results import InfluenceResult

SHOWN_TARGETS = 4


class InfluenceOptions(TargetOptions):
    """Options of ``influence``."""

    method: Literal["direct", "total_effect", "signed_influence", "absolute_influence"] = (
        "total_effect"
    )
    """What is computed; see docs/influence.md."""
    targets: Annotated[str, Flag(metavar="all|evil-safe|probabilities|ID,ID|ID,ID:ID,ID")] = "all"
    """Every logit, the labelled contrast, circuit-tracer's seed, token ids, or EVIL:SAFE token
    ids."""
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

    targets = targets_of(session, loaded, options.targets, options.weighting)
    result = compute(loaded, targets, Method(options.method))
    top = options.top if as_json else options.top or 20
    emit(InfluenceResult.of(loaded, result, top), as_json, _lines)


def _lines(result: InfluenceResult) -> Iterator[str]:
    coverage = "unknown" if result.coverage is None else f"{result.coverage:.3f}"
    yield f"{result.method} in graph {result.graph[:12]}, coverage {coverage}"
    shown = result.targets[:SHOWN_TARGETS]
    width = 10 if len(shown) > 1 else 24
    names = [t.text.strip()[:width] or str(t.token_id) for t in shown]
    rows = [
        (str(n.kind), n.layer, n.position, n.feature, *n.values[:SHOWN_TARGETS])
        for n in result.nodes
    ]
    yield table(("kind", "layer", "pos", "feature", *names), rows)
    if result.unmatched:
        yield f"no targets of this graph: tokens {result.unmatched}"
    if len(result.targets) > SHOWN_TARGETS:
        yield f"(the first {SHOWN_TARGETS} of {len(result.targets)} targets; --json has all)"
