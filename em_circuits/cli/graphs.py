"""``em-circuits graphs``: attribution graphs of stored prompts, and the circuits within them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import click
from pydantic import Field

from em_circuits.cli.graph_arguments import (
    FOREIGN,
    FileOptions,
    GraphOptions,
    Share,
    TargetOptions,
    asked_targets,
    graph_argument,
    graph_store,
    load_graph,
    read_foreign,
    targets_of,
    token_ids,
)
from em_circuits.cli.graph_circuit import circuit
from em_circuits.cli.graph_edge import edge
from em_circuits.cli.interrupt import stop_on_interrupt
from em_circuits.cli.options import Flag, Options, options
from em_circuits.cli.output import emit, prints, say, table
from em_circuits.cli.session import (
    Session,
    attribution_options,
    attribution_settings,
    engine_options,
    measuring_options,
    pass_session,
)
from em_circuits.graphs.header import GraphHeader
from em_circuits.graphs.settings import AttributionSettings
from em_circuits.models.foreign import require_circuit_tracer
from em_circuits.progress import tracked
from em_circuits.target_request import TargetRequest
from pivotal_tokens.artefacts import sha256_file, write_atomic, write_json
from pivotal_tokens.errors import RequestError, WorkFailed
from pivotal_tokens.review.display import visible
from pivotal_tokens.schema import Frozen, Prompt

if TYPE_CHECKING:
    from em_circuits.engine.settings import EngineSettings
    from em_circuits.experiments.edge import MeasuredGraph
    from em_circuits.graphs import AttributionGraph
    from em_circuits.graphs.viewer_json import GraphNotes
    from em_circuits.influence.results import (
        NamedNode,
        PathsResult,
        PruneResult,
        ScoresResult,
        TargetResult,
    )
    from em_circuits.labelling.graphs import BuiltGraphs
    from em_circuits.workspace import Workspace

NO_ARCHIVES = (
    "graphs are no longer compressed (it freed a seventh): make room with graphs prune-store "
    "--edges-only, or restore archives of version 0.1 with graphs archive --undo"
)
CIRCUIT_TRACER = "circuit-tracer"


@click.group()
def graphs() -> None:
    """Build, list, show, import, export, verify and prune attribution graphs."""


graphs.add_command(edge)
graphs.add_command(circuit)


@graphs.command(epilog="Example: em-circuits graphs build 44a71b --select-by contrast")
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@attribution_options
@options(TargetRequest, into="target")
@click.option(
    "--only-divergent",
    is_flag=True,
    help="Leave out prompts whose verdict is neither injection nor promotion.",
)
@engine_options
@prints("em_circuits.labelling.graphs:BuiltGraphs", lines=True)
@pass_session
def build(
    session: Session,
    prompts: tuple[str, ...],
    target: TargetRequest,
    only_divergent: bool,
    engine: EngineSettings,
    as_json: bool,
    **options: Any,
) -> None:
    """Build both graphs of stored prompts; without PROMPT, of every prompt with labels.

    With a target (--continuation, --answer, --span, --rollouts-judged, --along) rows are its terms,
    and both models share the nodes that move it most.
    """
    settings = attribution_settings(options)
    _check_target(target, prompts, settings)
    with session.workspace(attribution=settings) as work:
        store = work.store
        chosen = [store.prompts.get(p) for p in prompts] or [
            p for p in store.prompts.all() if store.labels.of(p.prompt_id).labels
        ]
        if chosen:
            work.announce(by_workers=engine.spreads)
        if only_divergent:
            divergent = store.queries.divergent(work.pair.key)
            chosen = [prompt for prompt in chosen if prompt.prompt_id in divergent]
            if not chosen:
                raise RequestError("no such prompt is divergent; leave --only-divergent out")
        chosen = [prompt for prompt in chosen if engine.takes(prompt.prompt_id)]
        for built in _built(work, chosen, target, settings, engine, bare=options["scores_only"]):
            emit(built, as_json, _built_line)


def _built(
    work: Workspace,
    prompts: Sequence[Prompt],
    target: TargetRequest,
    settings: AttributionSettings,
    engine: EngineSettings,
    *,
    bare: bool,
) -> Iterator[BuiltGraphs]:
    """Both graphs of each prompt, by this process or by workers."""
    from em_circuits.labelling.graphs import graphs_of_prompt

    if not engine.spreads:
        for prompt in tracked(prompts, "graphs", work.progress):
            yield graphs_of_prompt(work, prompt, settings, target=target, scores_only=bare)
        return
    from em_circuits.engine.distributed import DistributedWork
    from em_circuits.labelling.distributed import GraphsTask

    distributed = DistributedWork(work, GraphsTask(settings, target, bare), engine)
    with stop_on_interrupt(distributed.stop):
        yield from distributed.results([prompt.prompt_id for prompt in prompts], "graphs")
    if distributed.stopped:
        raise click.Abort


def _check_target(
    target: TargetRequest, prompts: Sequence[str], settings: AttributionSettings
) -> None:
    """Refuse what a target cannot be asked for, before anything is loaded."""
    if not target.is_given:
        return
    target.require_one(prompts)
    if settings.edges == "frozen":
        raise RequestError(
            "--edges frozen are to next tokens; a target of its own needs --edges full or measured"
        )
    if settings.select_by == "contrast":
        raise RequestError(
            "--select-by contrast is of next tokens; nodes are chosen by their effect on the target"
        )


def _built_line(built: BuiltGraphs) -> Iterator[str]:
    parts = "  ".join(f"{name} {key[:12]}" for name, key in built.graphs.items())
    yield f"{built.prompt_id}  {parts}  {'re-used' if built.reused else 'built'}"
    if built.target is not None:
        yield f"of {built.target}; look at them by key: em-circuits influence KEY"


@graphs.command(name="list", epilog="Example: em-circuits graphs list --json")
@prints(GraphHeader, lines=True)
@pass_session
def list_(session: Session, as_json: bool) -> None:
    """Every graph under the root."""
    headers = graph_store(session).list()
    if as_json:
        emit([header.model_dump(mode="json", exclude={"extra"}) for header in headers])
        return
    columns = (
        "short_key as key",
        "prompt_id as prompt",
        "model",
        "edges_shown as edges",
        "basis",
        "measures as of",
    )
    emit(headers, as_json, columns, none="no graphs")


@graphs.command(epilog="Example: em-circuits graphs measure 44a71b --model base")
@graph_argument
@options(GraphOptions)
@measuring_options
@prints("em_circuits.experiments.edge:MeasuredGraph")
@pass_session
def measure(
    session: Session, graph: str, options: GraphOptions, as_json: bool, **batches: Any
) -> None:
    """Measure every edge of a stored graph: remove each node for real, the others held.

    Written beside its full edges, under the same key: graphs prune, the viewer's panel and exported
    pictures show both from then on.
    """
    if Path(graph).suffix:
        raise RequestError(f"{graph}: give the KEY or PROMPT of a graph under --root, not a file")
    loaded = load_graph(session, graph, options)
    from em_circuits.experiments.edge import MeasuredGraph, measure_graph, require_measurable

    require_measurable(loaded)
    if loaded.measured is not None:
        result = MeasuredGraph.of(loaded, reused=True)
    else:
        with session.workspace() as work:
            result = measure_graph(work, loaded, measuring_options.read(batches))
        _register(session)
    emit(result, as_json, _measured_lines)


def _measured_lines(result: MeasuredGraph) -> Iterator[str]:
    yield (
        f"graph {result.key[:12]}, {result.nodes} nodes "
        f"{'were measured before' if result.reused else 'measured, each really removed'}"
    )
    shown = result.agreement.model_dump(include={"pearson", "spearman", "sign"})
    figures = ", ".join(f"{k} {'-' if v is None else f'{v:.2f}'}" for k, v in shown.items())
    yield f"full edges with measured ones: {figures}; {result.curved:.0%} of edges are curved"


class TargetToken(Frozen):
    """A logit node of a graph."""

    token_id: int
    text: str
    probability: float
    rank: int | None


class GraphSummary(Frozen):
    """What a graph holds, and how much of the model it explains."""

    key: str
    prompt_id: str
    text: str
    model: str
    dtype: str
    positions: int
    edge_kind: str
    """``full`` or ``frozen``."""
    measured: bool
    """Whether every edge was measured, too."""
    pruned: bool
    """Only what pruning left: the graph was read from a viewer's JSON."""
    basis: list[str]
    """What its nodes are."""
    features: int
    active: int
    select_by: str
    edges: bool
    gradient: bool
    replacement: float | None
    """Null with full edges or after pruning: rows do not sum to their target's value."""
    completeness: float | None
    targets: list[TargetToken]


@graphs.command(epilog="Example: em-circuits graphs show 1f2e3d")
@graph_argument
@options(GraphOptions)
@prints(GraphSummary)
@pass_session
def show(session: Session, graph: str, options: GraphOptions, as_json: bool) -> None:
    """What a graph holds, and how much of the model it explains."""
    loaded = load_graph(session, graph, options)
    emit(_summary(loaded), as_json)


def _summary(graph: AttributionGraph) -> GraphSummary:
    from em_circuits.influence import graph_scores

    header, targets = graph.header, graph.targets
    summed = graph.edges is not None and header.edges_shown == "frozen"
    scores = graph_scores(graph) if summed else None
    ranks = targets.ranks.tolist() if targets.ranks is not None else [None] * len(targets)
    columns = (targets.token_ids.tolist(), targets.texts, targets.probabilities.tolist(), ranks)
    return GraphSummary(
        key=header.key,
        prompt_id=header.prompt_id,
        text=header.text,
        model=header.model,
        dtype=header.dtype,
        positions=len(graph.input_ids),
        edge_kind=graph.edge_kind,
        measured=graph.measured is not None,
        pruned=header.pruned,
        basis=list(dict.fromkeys(part.basis for part in header.node_parts)),
        features=len(graph.selected),
        active=graph.n_active,
        select_by=header.selection.select_by,
        edges=graph.edges is not None,
        gradient=graph.gradient is not None,
        replacement=scores.replacement if scores else None,
        completeness=scores.completeness if scores else None,
        targets=[
            TargetToken(token_id=token, text=text, probability=p, rank=rank)
            for token, text, p, rank in zip(*columns, strict=True)
        ],
    )


class StoredGraph(Frozen):
    """A graph that was imported."""

    key: str
    path: str
    model: str
    pruned: bool
    """Only what pruning left, as a viewer's .json holds it."""


@graphs.command(name="import", epilog="Example: em-circuits graphs import graph.pt --trust-pickle")
@click.argument("file", type=click.Path(dir_okay=False))
@options(FileOptions)
@prints(StoredGraph)
@pass_session
def import_(session: Session, file: str, options: FileOptions, as_json: bool) -> None:
    """Store a graph that circuit-tracer wrote (.pt), or a pruned one of the viewers (.json).

    A .json holds what pruning left, and the graph says so; labels, pins and groups are kept, and
    stand in what is exported from it.
    """
    path = Path(file)
    if path.suffix not in FOREIGN:
        raise RequestError(f"{file} ends in neither .pt nor .json")
    graph = read_foreign(path, trust_pickle=options.trust_pickle)
    provenance = {"inputs": {path.name: sha256_file(path)}, "config": {"imported_from": file}}
    stored = graph_store(session).save(graph, provenance)
    header = graph.header
    stored_graph = StoredGraph(
        key=header.key, path=str(stored), model=header.model, pruned=header.pruned
    )
    emit(stored_graph, as_json)


class ExportOptions(GraphOptions):
    """Options of ``graphs export``."""

    form: Annotated[Literal["pt", "json", "svg"] | None, Flag("--format", "form")] = None
    """circuit-tracer's graph, the viewers' JSON, a picture.  [default: by the file's ending]"""
    scan: Annotated[str | None, Flag(metavar="ID")] = None
    """Transcoders (circuit-tracer) or base model."""
    source_set: Annotated[str | None, Flag(metavar="ID")] = None
    """Neuronpedia's name of the transcoders."""
    slug: Annotated[str | None, Flag(metavar="NAME")] = None
    """Name in the viewer.  [default: the file's]"""
    node_threshold: Share = 0.8
    """Share of all node influence that is left."""
    edge_threshold: Share = 0.98
    """Share of all edge influence that is left."""
    pins: Annotated[str | None, Flag(metavar="PERSON")] = None
    """Pins and groups that this person saved in the viewer."""
    index: bool = False
    """Also list it in graph-metadata.json beside it."""


@graphs.command(epilog="Example: em-circuits graphs export 1f2e3d graph.json --scan llama3.2-1b")
@graph_argument
@click.argument("file", type=click.Path(dir_okay=False))
@options(ExportOptions)
@pass_session
def export(session: Session, graph: str, file: str, options: ExportOptions) -> None:
    """Write a graph for circuit-tracer (.pt), pruned for the graph viewers (.json), or its picture
    (.svg), coloured by the labels of its prompt.

    The JSON is what circuit-tracer's page and Neuronpedia read. There, --scan names the *base*
    model, a merged one's too; circuit-tracer's page goes by the transcoders' name, the default.
    """
    path = Path(file)
    if not path.absolute().parent.is_dir():
        raise RequestError(f"{file}: no directory {path.parent}; make it first")
    form = options.form or path.suffix.removeprefix(".")
    if form not in ("pt", "json", "svg"):
        raise RequestError(f"{file} ends in none of .pt, .json, .svg; give --format")
    loaded = load_graph(session, graph, options)
    if form == "pt":
        from em_circuits.graphs.interop import export_pt

        export_pt(loaded, path)
        say(f"{file}  (pt)")
    elif form == "svg":
        write_atomic(path, _picture(session, loaded, options))
        say(f"{file}  (svg)")
    else:
        nodes, links = _write_json(session, loaded, path, options)
        say(f"{file}  (json, {nodes} nodes, {links} links)")


def _picture(session: Session, graph: AttributionGraph, options: ExportOptions) -> str:
    from em_circuits.contrast import Contrast
    from em_circuits.influence.drawing import SMALL, picture

    words = None
    with contextlib.suppress(RequestError), session.open_store() as store:
        words = Contrast.from_labels(store.labels.of(graph.header.prompt_id).by_token)
    names = None if options.pins is None else _saved_pins(session, graph, options.pins).labels
    cut = replace(SMALL, node=options.node_threshold, edge=options.edge_threshold)
    return picture(graph, words, cut, names)


def _write_json(
    session: Session, graph: AttributionGraph, path: Path, options: ExportOptions
) -> tuple[int, int]:
    from em_circuits.influence import prune
    from em_circuits.influence.drawing import keeping
    from em_circuits.influence.neuronpedia import ViewerOptions, viewer_json

    if options.index:
        require_circuit_tracer("lists of graphs (--index)")
    # What a viewer's file left is not pruned again.
    whole = graph.header.pruned
    pruned = prune(
        graph,
        node_threshold=1.0 if whole else options.node_threshold,
        edge_threshold=1.0 if whole else options.edge_threshold,
    )
    notes = None if options.pins is None else _saved_pins(session, graph, options.pins)
    if notes is not None:
        grouped = (member for group in notes.groups for member in group.members)
        pruned = keeping(pruned, graph, (*notes.pinned, *grouped))
    names = ViewerOptions(
        slug=options.slug or path.stem, scan=options.scan, source_set=options.source_set
    )
    record = viewer_json(graph, pruned, _token_texts(graph), names, notes)
    write_json(path, record)
    if options.index:
        from circuit_tracer.frontend.utils import add_graph_metadata

        add_graph_metadata(record["metadata"], str(path.absolute().parent))
    return len(record["nodes"]), len(record["links"])


def _saved_pins(session: Session, graph: AttributionGraph, person: str) -> GraphNotes:
    """The graph's own notes, with what a person pinned, grouped and labelled in the viewer."""
    from em_circuits.viewer.pins import notes_for

    with session.open_store() as store:
        notes = notes_for(store, person, graph)
    if not (notes.pinned or notes.groups or notes.labels):
        prompt = graph.header.prompt_id
        raise RequestError(f"--pins {person}: this person saved none of prompt {prompt}")
    return notes


def _token_texts(graph: AttributionGraph) -> tuple[str, ...]:
    """Texts of the prompt's tokens: the graph's own, or those of the tokenizer it names."""
    header = graph.header
    if header.tokens:
        return header.tokens
    from transformers import AutoTokenizer

    from em_circuits.models.foreign import foreign_errors
    from em_circuits.models.text import decode_token

    if not header.tokenizer_name:
        raise RequestError("the graph names no tokenizer, so its tokens have no text")
    with foreign_errors(f"the graph's tokenizer {header.tokenizer_name} cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(header.tokenizer_name, trust_remote_code=False)
    return tuple(decode_token(tokenizer, token) for token in graph.input_ids.tolist())


class Problem(Frozen):
    """A broken graph file."""

    path: str
    key: str | None
    problem: str


class VerifyResult(Frozen):
    """Graphs checked, and what is broken of them."""

    checked: int
    ok: bool
    problems: list[Problem]


@graphs.command(epilog="Example: em-circuits graphs verify --quarantine")
@click.option("--quarantine", is_flag=True, help="Move what fails aside, to be built again.")
@prints(VerifyResult)
@pass_session
def verify(session: Session, quarantine: bool, as_json: bool) -> None:
    """Hash every graph again and compare with its provenance."""
    results = graph_store(session).verify(quarantine=quarantine)
    broken = [Problem(path=str(r.path), key=r.key, problem=r.problem) for r in results if r.problem]
    emit(VerifyResult(checked=len(results), ok=not broken, problems=broken), as_json)
    if broken:
        raise WorkFailed(
            f"{len(broken)} graphs are broken; run em-circuits graphs verify --quarantine, "
            "then em-circuits graphs build"
        )


class ArchiveResult(Frozen):
    """Sizes after archives were restored."""

    graphs: int
    bytes: int
    freed_bytes: int


@graphs.command(epilog="Example: em-circuits graphs archive --undo", hidden=True)
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@click.option("--undo", is_flag=True, help="Write archives of version 0.1 uncompressed.")
@prints(ArchiveResult)
@pass_session
def archive(session: Session, keys: tuple[str, ...], undo: bool, as_json: bool) -> None:
    """Restore graphs that version 0.1 compressed (--undo; pip install blosc2)."""
    if not undo:
        raise RequestError(NO_ARCHIVES)
    store = graph_store(session)
    chosen = keys or [header.key for header in store.list()]
    paths = {store.path(key) for key in chosen}
    before = sum(path.stat().st_size for path in paths)
    for key in chosen:
        store.decompress(key)
    _register(session)
    after = sum(path.stat().st_size for path in paths)
    emit(ArchiveResult(graphs=len(paths), bytes=after, freed_bytes=before - after), as_json)


class PruneStoreOptions(Options):
    """Options of ``graphs prune-store``."""

    max_gb: float | None = Field(default=None, ge=0)
    """Size all graphs together may have."""
    max_age_days: float | None = Field(default=None, ge=0)
    """Remove older ones."""
    edges_only: bool = False
    """Keep scores, drop edges."""
    archive: Annotated[bool, Flag(hidden=True)] = False
    """Version 0.1 compressed graphs."""
    dry_run: bool = False
    """Only say what would go."""


class FreedFile(Frozen):
    """A graph file that was removed or thinned."""

    path: str
    bytes: int
    reason: str


class PruneStoreResult(Frozen):
    """What pruning the store freed."""

    freed_bytes: int
    dry_run: bool
    pruned: list[FreedFile]


@graphs.command(name="prune-store", epilog="Example: em-circuits graphs prune-store --max-gb 5")
@options(PruneStoreOptions)
@prints(PruneStoreResult)
@pass_session
def prune_store(session: Session, as_json: bool, options: PruneStoreOptions) -> None:
    """Make room: the oldest graphs go first."""
    if options.archive:
        raise RequestError(NO_ARCHIVES)
    if options.max_gb is None and options.max_age_days is None:
        raise RequestError("say what may stay: --max-gb or --max-age-days")
    freed = graph_store(session).prune(
        max_age_days=options.max_age_days,
        max_bytes=None if options.max_gb is None else int(options.max_gb * 1e9),
        edges_only=options.edges_only,
        dry_run=options.dry_run,
    )
    if not options.dry_run:
        _register(session)
    result = PruneStoreResult(
        freed_bytes=sum(item.bytes for item in freed),
        dry_run=options.dry_run,
        pruned=[FreedFile(path=str(f.path), bytes=f.bytes, reason=f.reason) for f in freed],
    )
    emit(result, as_json)


def _register(session: Session) -> None:
    """Bring the store's register up to what is on the disk now."""
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


class PathOptions(TargetOptions):
    """Options of ``graphs paths``."""

    source: Annotated[str, Flag("--from", "source", metavar="L/POS/ID|error:L/POS|token:POS")]
    """Where the paths begin."""
    targets: Annotated[str, Flag("--to", "targets", metavar="TOKEN_ID|evil-safe|ID,ID:ID,ID")]
    """One token, the labelled contrast, EVIL:SAFE token ids; or own, what the graph was built for
    (--continuation)."""
    method: Literal["total_effect", "signed_influence", "absolute_influence", "direct"] = (
        "total_effect"
    )
    """What a path carries; see docs/influence.md."""
    top: int = Field(default=10, ge=1)
    """Paths."""


@graphs.command(
    epilog="Example: em-circuits graphs paths 1f2e3d --from 2/11/431 --to evil-safe --top 5"
)
@graph_argument
@options(PathOptions)
@prints("em_circuits.influence.results:PathsResult")
@pass_session
def paths(session: Session, graph: str, options: PathOptions, as_json: bool) -> None:
    """The paths from a node to a target that carry most, with sign and share of all paths."""
    loaded = load_graph(session, graph, options)
    from em_circuits.influence import Method, top_paths
    from em_circuits.influence.results import PathsResult

    best = top_paths(
        loaded,
        source=loaded.node_named(options.source),
        targets=targets_of(session, loaded, options.targets, options.weighting),
        k=options.top,
        method=Method(options.method),
    )
    emit(PathsResult.of(loaded, best), as_json, _path_lines)


def _path_lines(result: PathsResult) -> Iterator[str]:
    ends = f"from {_name(result.source)} to {_target(result.target)}"
    yield f"{result.method} {ends}: {result.total:.4g} {result.unit} over all paths"
    rows = [
        (f"{path.product:+.4g}", f"{path.share:.1%}", " > ".join(map(_name, path.nodes)))
        for path in result.paths
    ]
    yield table(("carries", "share", "path"), rows, width=160) if rows else "no path"
    yield from _unmatched(result.unmatched)


class PruneOptions(TargetOptions):
    """Options of ``graphs prune``."""

    targets: Annotated[str, Flag(metavar="circuit-tracer|evil-safe|TOKEN_ID|ID,ID:ID,ID")] = (
        CIRCUIT_TRACER
    )
    """circuit-tracer's rule, or what moves a contrast or a token; own is what the graph was built
    for (--continuation), and its default."""
    method: Literal["signed_influence", "total_effect"] = "signed_influence"
    """Ranks nodes where --targets is given."""
    node_threshold: Share = 0.8
    """Share of all node influence that is left."""
    edge_threshold: Share = 0.98
    """Share of all edge influence among these nodes."""


@graphs.command(epilog="Example: em-circuits graphs prune 1f2e3d --targets evil-safe --json")
@graph_argument
@options(PruneOptions)
@prints("em_circuits.influence.results:PruneResult")
@pass_session
def prune(session: Session, graph: str, options: PruneOptions, as_json: bool) -> None:
    """The nodes and edges that carry most of the influence on the targets; nothing is removed."""
    loaded = load_graph(session, graph, options)
    from em_circuits.influence import Method
    from em_circuits.influence import prune as prune_graph
    from em_circuits.influence.results import PruneResult

    targets = None
    asked = asked_targets(loaded, options.targets)
    if asked != CIRCUIT_TRACER:
        targets = targets_of(session, loaded, asked, options.weighting)
    pruned = prune_graph(
        loaded,
        targets,
        method=Method(options.method),
        node_threshold=options.node_threshold,
        edge_threshold=options.edge_threshold,
    )
    emit(PruneResult.of(loaded, pruned), as_json, _pruned_lines)


def _pruned_lines(result: PruneResult) -> Iterator[str]:
    yield f"{result.method} on {_target(result.target)}"
    left, whole = result.kept.model_dump(), result.of_all.model_dump()
    yield table(("", "kept", "of"), [(name, left[name], whole[name]) for name in whole])
    nodes = [n for n in result.nodes if n.kind in ("feature", "error")][:15]
    rows = [(_name(n), n.score, n.cumulative) for n in nodes]
    yield table(("node", "score", "cumulative"), rows)
    if len(near := result.near_threshold) > 1:  # one always holds the threshold itself
        yield f"{len(near)} nodes stand at the threshold: rounding decides about them"
    yield from _unmatched(result.unmatched)


class ScoreOptions(GraphOptions):
    """Options of ``graphs scores``."""

    tokens: Annotated[str | None, Flag(metavar="ID,ID")] = None
    """Error scores of these targets only."""


@graphs.command(epilog="Example: em-circuits graphs scores 1f2e3d 9a8b7c --tokens 431,87 --json")
@click.argument("graph_list", nargs=-1, required=True, metavar="KEY|PROMPT|FILE...")
@options(ScoreOptions)
@prints("em_circuits.influence.results:ScoresResult", lines=True)
@pass_session
def scores(
    session: Session, graph_list: tuple[str, ...], options: ScoreOptions, as_json: bool
) -> None:
    """Replacement and completeness, and how much reaches the logits from error nodes."""
    wanted = token_ids(options.tokens) if options.tokens else None
    results = []
    for reference in graph_list:
        loaded = load_graph(session, reference, options)
        from em_circuits.influence.results import ScoresResult

        results.append(ScoresResult.of(loaded, wanted))
    emit(results, as_json, _score_lines)


def _score_lines(results: Sequence[ScoresResult]) -> Iterator[str]:
    rows = [
        (
            r.graph[:12],
            r.model,
            r.replacement,
            r.completeness,
            r.errors.direct_mean,
            r.errors.direct_ratio,
            r.errors.multi_hop,
        )
        for r in results
    ]
    header = ("graph", "model", "replaced", "complete", "err mean", "err ratio", "err multi-hop")
    yield table(header, rows)
    yield "err mean: logits per target, by direct edges; the other figures are shares"
    if missing := sorted({t for r in results for t in r.errors.unmatched}):
        yield f"no targets of every graph: tokens {missing}"


def _name(node: NamedNode) -> str:
    return _token(node) if node.kind == "logit" else node.name


def _target(target: TargetResult) -> str:
    return _token(target) if target.token_id is not None else target.text


def _token(item: NamedNode | TargetResult) -> str:
    text = visible(item.text or "", spaces=item.token_id is not None)
    return text if item.token_id is None else f"{text} ({item.token_id})"


def _unmatched(tokens: list[int]) -> Iterator[str]:
    if tokens:
        yield f"no targets of this graph: tokens {tokens}"
