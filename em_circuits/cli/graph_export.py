"""``em-circuits graphs export``: a graph for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from em_circuits.cli.graph_files import load_graph
from em_circuits.cli.session import Session, pass_session
from pivotal_tokens.errors import RequestError

if TYPE_CHECKING:
    from em_circuits.graphs import AttributionGraph

_share = click.FloatRange(0, 1)


@click.command(epilog="Example: em-circuits graphs export 1f2e3d graph.json --scan llama3.2-1b")
@click.argument("graph", metavar="KEY|FILE")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option(
    "--format",
    "form",
    type=click.Choice(["pt", "json"]),
    help="circuit-tracer's graph, or the viewers' JSON.  [default: by the file's ending]",
)
@click.option("--scan", metavar="ID", help="Transcoders (circuit-tracer) or base model.")
@click.option("--source-set", metavar="ID", help="Neuronpedia's name of the transcoders.")
@click.option("--slug", metavar="NAME", help="Name in the viewer.  [default: the file's]")
@click.option("--node-threshold", default=0.8, show_default=True, type=_share)
@click.option("--edge-threshold", default=0.98, show_default=True, type=_share)
@click.option("--index", is_flag=True, help="Also list it in graph-metadata.json beside it.")
@click.option("--trust-pickle", is_flag=True, help="The author of a .pt may run code here.")
@pass_session
def export(session: Session, graph: str, file: str, form: str | None, **options: Any) -> None:
    """Write a graph for circuit-tracer (.pt), or pruned for the graph viewers (.json).

    The JSON is what circuit-tracer's page and Neuronpedia read. There, --scan names the *base*
    model, a merged one's too; circuit-tracer's page goes by the transcoders' name, the default.
    """
    from em_circuits.graphs.interop import export_pt

    path = Path(file)
    if not path.absolute().parent.is_dir():
        raise RequestError(f"{file}: no directory {path.parent}; make it first")
    form = form or path.suffix.removeprefix(".")
    if form not in ("pt", "json"):
        raise RequestError(f"{file} ends in neither .pt nor .json; give --format pt or json")
    loaded = load_graph(session, graph, trust_pickle=options["trust_pickle"])
    if form == "pt":
        export_pt(loaded, path)
        click.echo(f"{file}  (pt)")
    else:
        nodes, links = _write_json(loaded, path, options)
        click.echo(f"{file}  (json, {nodes} nodes, {links} links)")


def _write_json(graph: AttributionGraph, path: Path, options: dict[str, Any]) -> tuple[int, int]:
    from circuit_tracer.frontend.utils import add_graph_metadata

    from em_circuits.influence import prune
    from em_circuits.influence.viewer_json import ViewerOptions, viewer_json
    from pivotal_tokens.artefacts import write_json

    thresholds = {name: options[name] for name in ("node_threshold", "edge_threshold")}
    names = {name: options[name] for name in ("scan", "source_set")}
    asked = ViewerOptions(**thresholds, **names, slug=options["slug"] or path.stem)
    record = viewer_json(graph, prune(graph, **thresholds), _tokens(graph), asked)
    write_json(path, record)
    if options["index"]:
        add_graph_metadata(record["metadata"], str(path.absolute().parent))
    return len(record["nodes"]), len(record["links"])


def _tokens(graph: AttributionGraph) -> tuple[str, ...]:
    """Texts of the prompt's tokens: the graph's own, or those of the tokenizer it names."""
    header = graph.header
    if header.tokens:
        return header.tokens
    from transformers import AutoTokenizer

    from em_circuits.models.text import decode_token

    if not header.tokenizer_name:
        raise RequestError("the graph names no tokenizer, so its tokens have no text")
    try:
        tokenizer = AutoTokenizer.from_pretrained(header.tokenizer_name)
    except (OSError, ValueError) as error:
        raise RequestError(
            f"the graph's tokenizer {header.tokenizer_name} cannot be loaded: "
            f"{' '.join(str(error).split())[:120]}"
        ) from error
    return tuple(decode_token(tokenizer, token) for token in graph.input_ids.tolist())
