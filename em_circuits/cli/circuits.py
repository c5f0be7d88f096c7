"""``em-circuits graphs paths|prune|scores``: what lies between features and logits of one graph."""

from __future__ import annotations

from typing import Any

import click

from em_circuits.cli.graph_files import load_graph
from em_circuits.cli.graphs import graphs
from em_circuits.cli.influence import (
    graph_argument,
    target_seeds,
    token_ids,
    trust_option,
    weighting_option,
)
from em_circuits.cli.output import emit, json_option, table
from em_circuits.cli.session import Session, pass_session

_CIRCUIT_TRACER = "circuit-tracer"


@graphs.command(
    epilog="Example: em-circuits graphs paths 1f2e3d --from 2/11/431 --to evil-safe --top 5"
)
@graph_argument
@click.option(
    "--from",
    "source",
    required=True,
    metavar="L/POS/ID|error:L/POS|token:POS",
    help="Where the paths begin.",
)
@click.option(
    "--to",
    "targets",
    required=True,
    metavar="TOKEN_ID|evil-safe|ID,ID:ID,ID",
    help="One token, the labelled contrast, or EVIL:SAFE token ids.",
)
@click.option(
    "--method",
    type=click.Choice(["total_effect", "signed_influence", "absolute_influence", "direct"]),
    default="total_effect",
    show_default=True,
    help="What a path carries; see docs/influence.md.",
)
@weighting_option
@click.option("--top", type=click.IntRange(min=1), default=10, show_default=True, help="Paths.")
@trust_option
@json_option
@pass_session
def paths(
    session: Session, graph: str, source: str, targets: str, as_json: bool, **options: Any
) -> None:
    """The paths from a node to a target that carry most, with sign and share of all paths."""
    loaded = load_graph(session, graph, trust_pickle=options["trust_pickle"])

    from em_circuits.influence import Method, node_named, paths_json, top_paths

    start, method = node_named(loaded, source), Method(options["method"])
    seeds = target_seeds(session, loaded, targets, options["weighting"])
    found = top_paths(loaded, source=start, targets=seeds, k=options["top"], method=method)
    record = paths_json(loaded, start, seeds, method, found)
    if as_json:
        emit(record)
        return
    click.echo(
        f"{record['method']} from {_name(record['from'])} to {_target(record['target'])}: "
        f"{record['total']:.4g} over all paths"
    )
    rows = [
        (f"{path['product']:+.4g}", f"{path['share']:.1%}", " > ".join(map(_name, path["nodes"])))
        for path in record["paths"]
    ]
    click.echo(table(("carries", "share", "path"), rows, width=160) if rows else "no path")
    _unmatched(record)


@graphs.command(epilog="Example: em-circuits graphs prune 1f2e3d --targets evil-safe --json")
@graph_argument
@click.option(
    "--targets",
    default=_CIRCUIT_TRACER,
    show_default=True,
    metavar="circuit-tracer|evil-safe|TOKEN_ID|ID,ID:ID,ID",
    help="circuit-tracer's rule, or what moves a contrast or a token.",
)
@click.option(
    "--method",
    type=click.Choice(["signed_influence", "total_effect"]),
    default="signed_influence",
    show_default=True,
    help="Ranks nodes where --targets is given.",
)
@weighting_option
@click.option(
    "--node-threshold",
    type=click.FloatRange(0, 1),
    default=0.8,
    show_default=True,
    help="Share of all node influence that is kept.",
)
@click.option(
    "--edge-threshold",
    type=click.FloatRange(0, 1),
    default=0.98,
    show_default=True,
    help="Share of all edge influence among the kept nodes.",
)
@trust_option
@json_option
@pass_session
def prune(session: Session, graph: str, targets: str, as_json: bool, **options: Any) -> None:
    """The nodes and edges that carry most of what reaches the targets; nothing is removed."""
    loaded = load_graph(session, graph, trust_pickle=options["trust_pickle"])

    from em_circuits.influence import Method, PruneRule, pruned_json

    upstream = targets == _CIRCUIT_TRACER
    seeds = None if upstream else target_seeds(session, loaded, targets, options["weighting"])
    rule = PruneRule(
        Method.ABSOLUTE if upstream else Method(options["method"]),
        options["node_threshold"],
        options["edge_threshold"],
    )
    record = pruned_json(loaded, seeds, rule.apply(loaded, seeds), rule)
    if as_json:
        emit(record)
        return
    click.echo(f"{record['method']} on {_target(record['target'])}")
    rows = [(name, n, record["of"][name]) for name, n in record["kept"].items()]
    click.echo(table(("", "kept", "of"), rows))
    nodes = [n for n in record["nodes"] if n["kind"] in ("feature", "error")][:15]
    shown = [(_name(n), n["score"], n["cumulative"]) for n in nodes]
    click.echo(table(("node", "score", "cumulative"), shown))
    if len(near := record["near_threshold"]) > 1:  # one always holds the threshold itself
        click.echo(f"{len(near)} nodes stand at the threshold: rounding decides about them")
    _unmatched(record)


@graphs.command(epilog="Example: em-circuits graphs scores 1f2e3d 9a8b7c --tokens 431,87 --json")
@click.argument("graph_list", nargs=-1, required=True, metavar="KEY|FILE...")
@click.option("--tokens", metavar="ID,ID", help="Error scores of these targets only.")
@trust_option
@json_option
@pass_session
def scores(
    session: Session,
    graph_list: tuple[str, ...],
    tokens: str | None,
    trust_pickle: bool,
    as_json: bool,
) -> None:
    """Replacement and completeness, and how much reaches the logits from error nodes."""
    wanted = token_ids(tokens) if tokens else None
    records = []
    for reference in graph_list:
        loaded = load_graph(session, reference, trust_pickle=trust_pickle)

        from em_circuits.influence import scores_json

        record = scores_json(loaded, wanted)
        records.append(record)
        if as_json:
            emit(record)
    if as_json:
        return
    rows = [
        (
            r["graph"][:12],
            r["model"],
            r["replacement"],
            r["completeness"],
            *(r["errors"][name] for name in ("direct_mean", "direct_ratio", "multi_hop")),
        )
        for r in records
    ]
    header = ("graph", "model", "replaced", "complete", "err mean", "err ratio", "err multi-hop")
    click.echo(table(header, rows))
    click.echo("err mean: logits per target, by direct edges; the other figures are shares")
    if missing := sorted({t for r in records for t in r["errors"]["unmatched"]}):
        click.echo(f"no targets of every graph: tokens {missing}")


def _name(node: dict[str, Any]) -> str:
    match node["kind"]:
        case "feature":
            return f"{node['layer']}/{node['position']}/{node['feature']}"
        case "error":
            return f"error:{node['layer']}/{node['position']}"
        case "token":
            return f"token:{node['position']}"
    return _token(node)


def _target(target: dict[str, Any]) -> str:
    return _token(target) if target["token_id"] is not None else str(target["text"])


def _token(item: dict[str, Any]) -> str:
    from pivotal_tokens.review.display import visible

    return f"{visible(item['text'])} ({item['token_id']})"


def _unmatched(record: dict[str, Any]) -> None:
    if record["unmatched"]:
        click.echo(f"no targets of this graph: tokens {record['unmatched']}")
