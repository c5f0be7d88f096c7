"""``em-circuits graphs``: attribution graphs of stored prompts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from em_circuits.cli.graph_export import export
from em_circuits.cli.graph_files import graph_store, load_graph, read_pt
from em_circuits.cli.output import emit, json_option, say, table
from em_circuits.cli.session import (
    Session,
    attribution_options,
    attribution_settings,
    pass_session,
)
from pivotal_tokens.errors import RequestError, WorkFailed

if TYPE_CHECKING:
    from em_circuits.graphs import AttributionGraph


NO_ARCHIVES = (
    "graphs are no longer compressed (it freed a seventh): make room with graphs prune-store "
    "--edges-only, or restore archives of version 0.1 with graphs archive --undo"
)


@click.group()
def graphs() -> None:
    """Build, list, show, import, export, verify and prune attribution graphs."""


@graphs.command(epilog="Example: em-circuits graphs build 44a71b --select-by contrast")
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@attribution_options
@json_option
@pass_session
def build(session: Session, prompts: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Build both graphs of stored prompts; without PROMPT, of every prompt with labels."""
    from em_circuits.labelling.graphs import build_graphs, graph_keys, has_graphs
    from em_circuits.progress import tracked

    settings = attribution_settings(options)
    with session.workspace() as work:
        store = work.store
        chosen = [store.prompts.get(p) for p in prompts] or [
            p for p in store.prompts.all() if store.labels.of(p.prompt_id).labels
        ]
        for prompt in tracked(chosen, "graphs", work.progress):
            labels = store.labels.of(prompt.prompt_id).by_token
            keys = graph_keys(work, prompt, settings, labels)
            bare = options["scores_only"]
            reused = has_graphs(work, prompt.prompt_id, keys, with_edges=not bare)
            if not reused:
                keys = build_graphs(work, prompt, settings, labels=labels, scores_only=bare)
            record = {"prompt_id": prompt.prompt_id, "graphs": keys, "reused": reused}
            if as_json:
                emit(record)
            else:
                parts = "  ".join(f"{name} {key[:12]}" for name, key in keys.items())
                say(f"{prompt.prompt_id}  {parts}  {'re-used' if reused else 'built'}")


@graphs.command(name="list", epilog="Example: em-circuits graphs list --json")
@json_option
@pass_session
def list_(session: Session, as_json: bool) -> None:
    """Every graph under the root."""
    headers = graph_store(session).list()
    if as_json:
        for header in headers:
            emit(header.model_dump(mode="json", exclude={"extra"}))
        return
    rows = [(h.key[:12], h.prompt_id, h.model, h.dtype, h.selection.select_by) for h in headers]
    click.echo(table(("key", "prompt", "model", "dtype", "by"), rows) if rows else "no graphs")


@graphs.command(epilog="Example: em-circuits graphs show 1f2e3d")
@click.argument("graph", metavar="KEY|FILE")
@click.option("--trust-pickle", is_flag=True, help="The author of a .pt may run code here.")
@json_option
@pass_session
def show(session: Session, graph: str, trust_pickle: bool, as_json: bool) -> None:
    """What a graph holds, and how much of the model it explains."""
    loaded = load_graph(session, graph, trust_pickle=trust_pickle)
    record = describe(loaded)
    if as_json:
        emit(record)
        return
    for name, value in record.items():
        if name != "targets":
            click.echo(f"{name:<13} {value}")
    rows = [(t["token_id"], t["text"], t["probability"], t["rank"]) for t in record["targets"]]
    click.echo(table(("id", "token", "p", "rank"), rows))


@graphs.command(name="import", epilog="Example: em-circuits graphs import graph.pt --trust-pickle")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--trust-pickle", is_flag=True, help="The file's author may run code here.")
@json_option
@pass_session
def import_(session: Session, file: str, trust_pickle: bool, as_json: bool) -> None:
    """Keep a graph that circuit-tracer wrote (.pt)."""
    from pivotal_tokens.artefacts import sha256_file

    path = Path(file)
    graph = read_pt(path, trust_pickle=trust_pickle)
    provenance = {"inputs": {path.name: sha256_file(path)}, "config": {"imported_from": file}}
    kept = graph_store(session).save(graph, provenance)
    if as_json:
        emit({"key": graph.header.key, "path": str(kept)})
    else:
        click.echo(f"{graph.header.key[:12]}  {kept}")


graphs.add_command(export)


@graphs.command(epilog="Example: em-circuits graphs verify --quarantine")
@click.option("--quarantine", is_flag=True, help="Move what fails aside, to be built again.")
@json_option
@pass_session
def verify(session: Session, quarantine: bool, as_json: bool) -> None:
    """Hash every graph again and compare with its provenance."""
    results = graph_store(session).verify(quarantine=quarantine)
    broken = [result for result in results if result.problem]
    if as_json:
        problems = [{"path": str(r.path), "key": r.key, "problem": r.problem} for r in broken]
        emit({"checked": len(results), "ok": not broken, "problems": problems})
    else:
        for result in broken:
            click.echo(f"broken  {result.problem}")
        click.echo(f"{len(results)} graphs checked, {len(broken)} broken")
    if broken:
        raise WorkFailed(
            f"{len(broken)} graphs are broken; run em-circuits graphs verify --quarantine, "
            "then em-circuits graphs build"
        )


@graphs.command(epilog="Example: em-circuits graphs archive --undo", hidden=True)
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@click.option("--undo", is_flag=True, help="Write archives of version 0.1 uncompressed.")
@json_option
@pass_session
def archive(session: Session, keys: tuple[str, ...], undo: bool, as_json: bool) -> None:
    """Restore graphs that version 0.1 compressed (--undo; pip install blosc2)."""
    if not undo:
        raise RequestError(NO_ARCHIVES)
    store = graph_store(session)
    chosen = keys or [header.key for header in store.list()]
    paths = {store.path(key) for key in chosen}
    before = sum(path.stat().st_size for path in paths)
    restored = sum([store.decompress(key) for key in chosen])
    _register(session)
    after = sum(path.stat().st_size for path in paths)
    if as_json:
        emit({"graphs": len(paths), "bytes": after, "freed_bytes": before - after})
    else:
        click.echo(f"{restored} graphs restored, {before / 1e6:.1f} -> {after / 1e6:.1f} MB")


@graphs.command(name="prune-store", epilog="Example: em-circuits graphs prune-store --max-gb 5")
@click.option("--max-gb", type=click.FloatRange(min=0), help="Size all graphs together may have.")
@click.option("--max-age-days", type=click.FloatRange(min=0), help="Remove older ones.")
@click.option("--edges-only", is_flag=True, help="Keep scores, drop edges.")
@click.option("--archive", is_flag=True, hidden=True)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@json_option
@pass_session
def prune_store(session: Session, as_json: bool, **options: Any) -> None:
    """Make room: the oldest graphs go first."""
    if options["archive"]:
        raise RequestError(NO_ARCHIVES)
    if options["max_gb"] is None and options["max_age_days"] is None:
        raise RequestError("say what may stay: --max-gb or --max-age-days")
    pruned = graph_store(session).prune(
        max_age_days=options["max_age_days"],
        max_bytes=None if options["max_gb"] is None else int(options["max_gb"] * 1e9),
        edges_only=options["edges_only"],
        dry_run=options["dry_run"],
    )
    if not options["dry_run"]:
        _register(session)
    freed = sum(item.bytes for item in pruned)
    if as_json:
        rows = [{"path": str(p.path), "bytes": p.bytes, "reason": p.reason} for p in pruned]
        emit({"freed_bytes": freed, "dry_run": options["dry_run"], "pruned": rows})
        return
    for item in pruned:
        click.echo(f"{item.path}  {item.bytes / 1e6:.1f} MB  {item.reason}")
    would = "would free" if options["dry_run"] else "freed"
    click.echo(f"{would} {freed / 1e6:.1f} MB of {len(pruned)} graphs")


def _register(session: Session) -> None:
    """Bring the store's register up to what is on the disk now."""
    from pivotal_tokens.artefacts import sha256_file

    graphs = graph_store(session)
    if session.options["store"] is None and not session.default_store.exists():
        return  # graphs without a store: there is no register
    with session.open_store() as store:
        for record in store.graphs.all():
            if not graphs.has(record.key):
                store.graphs.drop(record.key)
                continue
            path = graphs.path(record.key)
            size = path.stat().st_size
            if size != record.bytes:
                update = {"bytes": size, "sha256": sha256_file(path)}
                store.graphs.put(record.model_copy(update=update))


def describe(graph: AttributionGraph) -> dict[str, Any]:
    """A graph's facts and scores, as JSON."""
    from em_circuits.influence import graph_scores

    header, targets = graph.header, graph.targets
    scores = graph_scores(graph) if graph.edges is not None else None
    ranks = targets.ranks.tolist() if targets.ranks is not None else [None] * len(targets)
    return {
        "key": header.key,
        "prompt_id": header.prompt_id,
        "text": header.text,
        "model": header.model,
        "dtype": header.dtype,
        "positions": len(graph.input_ids),
        "features": len(graph.selected),
        "active": len(graph.active),
        "select_by": header.selection.select_by,
        "edges": graph.edges is not None,
        "gradient": graph.gradient is not None,
        "replacement": scores.replacement if scores else None,
        "completeness": scores.completeness if scores else None,
        "targets": [
            {"token_id": token, "text": text, "probability": p, "rank": rank}
            for token, text, p, rank in zip(
                targets.token_ids.tolist(),
                targets.texts,
                targets.probabilities.tolist(),
                ranks,
                strict=True,
            )
        ],
    }
