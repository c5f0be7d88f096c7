"""``em-circuits influence``: signed, multi-hop influence of every node of a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from em_circuits.cli.graph_files import load_graph
from em_circuits.cli.output import emit, json_option, table
from em_circuits.cli.session import Session, pass_session
from pivotal_tokens.errors import RequestError

if TYPE_CHECKING:
    from em_circuits.graphs import AttributionGraph
    from em_circuits.influence import TargetSeed
    from em_circuits.influence.seeds import Weighting


graph_argument = click.argument("graph", metavar="KEY|FILE")
trust_option = click.option(
    "--trust-pickle", is_flag=True, help="The author of a .pt may run code here."
)
weighting_option = click.option(
    "--weighting",
    type=click.Choice(["uniform", "probability"]),
    default="uniform",
    show_default=True,
    help="Within each side of a contrast.",
)


@click.command(epilog="Example: em-circuits influence 1f2e3d --targets evil-safe --top 20")
@graph_argument
@click.option(
    "--method",
    type=click.Choice(["direct", "total_effect", "signed_influence", "absolute_influence"]),
    default="total_effect",
    show_default=True,
    help="What is computed; see docs/influence.md.",
)
@click.option(
    "--targets",
    default="all",
    show_default=True,
    metavar="all|evil-safe|probabilities|ID,ID|ID,ID:ID,ID",
    help="Every logit, the labelled contrast, circuit-tracer's seed, token ids, or "
    "EVIL:SAFE token ids.",
)
@weighting_option
@click.option("--top", type=click.IntRange(min=1), help="Only the N largest nodes.")
@trust_option
@json_option
@pass_session
def influence(session: Session, graph: str, as_json: bool, top: int | None, **options: Any) -> None:
    """Influence of every node of a graph on its targets; positive raises the target."""
    loaded = load_graph(session, graph, trust_pickle=options["trust_pickle"])

    from em_circuits.influence import Method, to_json
    from em_circuits.influence import influence as compute

    seeds = target_seeds(session, loaded, options["targets"], options["weighting"])
    result = compute(loaded, seeds, Method(options["method"]))
    record = to_json(loaded, result, top if as_json else top or 20)
    if as_json:
        emit(record)
        return
    coverage = record["coverage"]
    click.echo(
        f"{record['method']} in graph {record['graph'][:12]}, "
        f"coverage {'unknown' if coverage is None else f'{coverage:.3f}'}"
    )
    names = [str(t["text"]).strip()[:10] or str(t["token_id"]) for t in record["targets"]][:4]
    rows = [
        (n["kind"], n["layer"], n["position"], n["feature"], *n["values"][:4])
        for n in record["nodes"]
    ]
    click.echo(table(("kind", "layer", "pos", "feature", *names), rows))
    if record["unmatched"]:
        click.echo(f"no targets of this graph: tokens {record['unmatched']}")
    if len(record["targets"]) > 4:
        click.echo(f"(the first 4 of {len(record['targets'])} targets; --json has all)")


def target_seeds(
    session: Session, graph: AttributionGraph, targets: str, weighting: Weighting
) -> TargetSeed:
    """What ``--targets`` means for a graph.

    Args:
        session: Whose store has the labels.
        graph: The graph.
        targets: ``all``, ``evil-safe``, ``probabilities``, ``ID,ID`` or ``EVIL,EVIL:SAFE,SAFE``.
        weighting: Within each side of a contrast.

    Raises:
        RequestError: If it is none of these, names tokens that are no targets, or has no contrast.
    """
    from em_circuits.influence import contrast, one_per_logit, probabilities, tokens

    if targets == "all":
        return one_per_logit(graph)
    if targets == "probabilities":
        return probabilities(graph)
    if targets == "evil-safe":
        with session.open_store() as store:
            labels = store.labels.of(graph.header.prompt_id)
        return contrast(graph, labels.ids("evil"), labels.ids("safe"), weighting=weighting)
    if ":" in targets:
        evil, _, safe = targets.partition(":")
        return contrast(graph, token_ids(evil), token_ids(safe), weighting=weighting)
    return tokens(graph, token_ids(targets))


def token_ids(text: str) -> list[int]:
    """Token ids of a comma-separated list.

    Raises:
        RequestError: If it is none.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise RequestError(
            f"{text!r}: give token ids (12,34), EVIL:SAFE ids (12,34:56), evil-safe, "
            "all or probabilities"
        )
    return [int(part) for part in parts]
