"""``em-circuits graphs circuit``: the nodes of a graph that by themselves do most."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import click
from pydantic import Field

from em_circuits.cli.graph_arguments import (
    GraphOptions,
    graph_argument,
    load_graph,
    require_next_tokens,
)
from em_circuits.cli.options import Flag, options
from em_circuits.cli.output import emit, prints, say, table
from em_circuits.cli.session import Session, pass_session

if TYPE_CHECKING:
    from em_circuits.experiments.circuit import FoundCircuit


class CircuitOptions(GraphOptions):
    """Options of ``graphs circuit``."""

    size: Annotated[int, Field(ge=1), Flag(metavar="N")] = 20
    """Nodes of the circuit."""


@click.command(epilog="Example: em-circuits graphs circuit 1f2e3d --size 20")
@graph_argument
@options(CircuitOptions)
@prints("em_circuits.experiments.circuit:FoundCircuit")
@pass_session
def circuit(session: Session, graph: str, options: CircuitOptions, as_json: bool) -> None:
    """Search a circuit for evil minus safe on full edges, and really measure it.

    Nodes leave one by one for what the others do by themselves, first order; at checkpoints all
    that left are really put to their values in the base (in a graph of the base: ablated). Alike
    nodes are grouped, and each group really removed. What the circuit is worth on other prompts:
    em-circuits validity.
    """
    loaded = load_graph(session, graph, options)
    require_next_tokens(loaded.header, "a circuit for evil-safe")
    from em_circuits.contrast import Contrast
    from em_circuits.experiments.circuit import circuit_of

    with session.open_store() as store:
        words = Contrast.from_labels(store.labels.of(loaded.header.prompt_id).by_token)
    words.require()
    with session.workspace() as work:
        found = circuit_of(work, loaded, words, size=options.size)
    emit(found, as_json, _lines)
    if not as_json:
        ids = dict.fromkeys(_id(member.node) for member in found.members)
        say("\n" + session.card_hint(",".join(ids)))


def _lines(found: FoundCircuit) -> Iterator[str]:
    yield (
        f"graph {found.graph[:12]}, {found.model} model, {found.target}: {len(found.members)} of "
        f"{found.n_nodes} nodes; against {found.reference} all of them shift it by "
        f"{found.shift:+.2f} logits"
    )
    rows = [(c.size, c.predicted, c.measured, c.necessity) for c in found.checkpoints]
    yield table(("nodes", "faithful, predicted", "measured", "necessary"), rows)
    by = "-" if found.silhouette is None else f"{found.silhouette:.2f}"
    yield f"\nsupernodes (mean silhouette {by}), by what really removing them does, in logits"
    groups = [(s.name, s.joint, s.sum, " ".join(s.members)) for s in found.supernodes]
    yield table(("promotes", "together", "sum of each", "members"), groups)


def _id(node: str) -> str:
    """``L/ID`` of ``L/POS/ID``."""
    layer, _, feature = node.split("/")
    return f"{layer}/{feature}"
