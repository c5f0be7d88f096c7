"""``em-circuits graphs edge``: one edge of a graph, split over what carries it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import click
from pydantic import Field

from em_circuits.cli.graph_arguments import GraphOptions, graph_argument, load_graph
from em_circuits.cli.options import Flag, options
from em_circuits.cli.output import emit, prints, table
from em_circuits.cli.session import Session, pass_session

if TYPE_CHECKING:
    from em_circuits.experiments.edge import EdgeOfModel, SplitResult

CONTRAST = "evil-safe"


class EdgeOptions(GraphOptions):
    """Options of ``graphs edge``."""

    by: Literal["last", "first"] = "last"
    """Which carrier is named: the last before the target, or the first after the source."""
    top: Annotated[int, Field(ge=1), Flag(metavar="N")] = 15
    """Parts that are printed; --json has all."""


@click.command(epilog="Example: em-circuits graphs edge 1f2e3d 1/9/88 evil-safe")
@graph_argument
@click.argument("source", metavar="L/POS/ID|token:POS")
@click.argument("target", metavar="L/POS/ID|logit:ID|evil-safe|own")
@options(EdgeOptions)
@prints("em_circuits.experiments.edge:SplitResult")
@pass_session
def edge(
    session: Session, graph: str, source: str, target: str, options: EdgeOptions, as_json: bool
) -> None:
    """What carries an edge: residual stream, each head's values and pattern, MLPs, norms.

    Signed parts that sum to the full edge, in the graph's model and beside it in the other; the
    stored edge and the really measured one beside them. The target "own" is what the graph was
    built for (graphs build --continuation).
    """
    loaded = load_graph(session, graph, options)
    from em_circuits.contrast import Contrast
    from em_circuits.experiments.edge import EdgeEnds, edge_in

    words = None
    if target == CONTRAST:
        with session.open_store() as store:
            words = Contrast.from_labels(store.labels.of(loaded.header.prompt_id).by_token)
    EdgeEnds(loaded, source, target, words)  # refused before the models load
    with session.workspace() as work:
        result = edge_in(work, loaded, source, target, contrast=words, by=options.by)
    emit(result, as_json, lambda result: _lines(result, options.top))


def _lines(result: SplitResult, top: int) -> Iterator[str]:
    yield (
        f"edge {result.source} to {result.target}, graph {result.graph[:12]}; parts by the "
        f"{result.by} carrier"
    )
    shown = [model for model in result.models if model.why_not is None]
    yield from (f"{m.model}: {m.why_not}" for m in result.models if m.why_not is not None)
    if not shown:
        return
    own = result.models[0]
    stored = [result.stored if model is own else None for model in shown]
    rows = [
        (f"stored ({result.kind})", *stored),
        ("measured", *(model.measured for model in shown)),
        ("full", *(model.full for model in shown)),
        ("sum of the parts", *(model.total for model in shown)),
    ]
    yield table(("", *(model.model for model in shown)), [_signed(row) for row in rows])
    values = [{part.carrier: part.value for part in model.parts} for model in shown]
    carriers = _largest_first(shown)
    rows = [(name, *(column.get(name, 0.0) for column in values)) for name in carriers]
    yield ""
    yield table(("part", *(m.model for m in shown)), [_signed(row) for row in rows[:top]])
    if rows[top:]:
        rest = (sum(column) for column in list(zip(*rows[top:], strict=True))[1:])
        yield f"{len(rows) - top} smaller parts: " + ", ".join(
            f"{value:+.4g} ({model.model})" for value, model in zip(rest, shown, strict=True)
        )
    nodes = ", ".join(f"{model.n_nodes} ({model.model})" for model in shown)
    unit = "units of activation" if result.unit == "activation" else result.unit
    yield f"{unit}; nodes held: {nodes}"
    if result.kind == "frozen":
        yield "the stored edge is frozen; parts are of the full edge among the same nodes"


def _largest_first(models: list[EdgeOfModel]) -> list[str]:
    """Carriers of any model, the largest by magnitude in one of them first."""
    sizes: dict[str, float] = {}
    for model in models:
        for part in model.parts:
            sizes[part.carrier] = max(sizes.get(part.carrier, 0.0), abs(part.value))
    return sorted(sizes, key=lambda name: -sizes[name])


def _signed(row: tuple) -> tuple:
    return row[0], *("-" if value is None else f"{value:+.4f}" for value in row[1:])
