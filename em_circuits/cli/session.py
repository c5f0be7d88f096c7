"""Session of one invocation: the global options, and the workspace they open.

They stand before the command (``em-circuits --root DIR label ...``), in ``em-circuits.toml``
(``base = "..."``) or in the environment (``EM_CIRCUITS_BASE``). Without any, the embedded model
organism ``toy`` is used.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import click

from em_circuits.cli.interrupt import stop_on_interrupt
from em_circuits.cli.options import FiniteRange, Flag, OptionSet, options
from em_circuits.engine.settings import EngineSettings
from em_circuits.graphs.settings import AttributionSettings
from em_circuits.models.settings import PairSettings
from em_circuits.object_store import artefact_root, require_store
from em_circuits.organisms.paths import ORGANISMS, TOY, TOYS, organism_paths
from em_circuits.progress import Bars
from em_circuits.workspace import SharedPair, Workspace, embedded_parts
from pivotal_tokens.artefacts import sha256_file, write_json
from pivotal_tokens.errors import RequestError
from pivotal_tokens.prompts.chats import ChatRenderer
from pivotal_tokens.store import Store, default_url
from pivotal_tokens.store.address import address, without_password
from pivotal_tokens.store.database import DEFAULT_NAME

Result = TypeVar("Result")

_EMBEDDED = "[default: the embedded organism]"
_LOCATION = "DIR|ID"

model_options = OptionSet(
    PairSettings,
    base=Flag(metavar=_LOCATION, required=False, help=f"Base model. {_EMBEDDED}"),
    adapter=Flag(metavar=_LOCATION),
    merged=Flag(metavar=_LOCATION),
    transcoders=Flag(
        metavar=_LOCATION,
        required=False,
        help="Transcoders of the base, or none: neurons.",
    ),
)
organism_option = click.option(
    "--organism",
    "organism_name",  # a command is called organism, and a configuration file has tables of them
    envvar="EM_CIRCUITS_ORGANISM",
    type=click.Choice(ORGANISMS),
    help=f"An embedded pair instead of --base and the rest. [default: {TOY}]",
)


def _bytes(_context: object, _option: object, gigabytes: float | None) -> int | None:
    return None if gigabytes is None else max(1, int(gigabytes * 1e9))


_BATCHES = {
    "batch_size": Flag(help="Rows of one batched pass, at most."),
    "max_memory": Flag(
        type=FiniteRange(min=0, min_open=True),
        metavar="GB",
        callback=_bytes,
        help="Memory an attribution may take beside the models; lowers --batch-size.",
    ),
}
_attribution = OptionSet(
    AttributionSettings,
    omit=("top_k", "update_rows", "measure"),
    edges=Flag(
        help="What an edge is: full, full with every edge measured too, or circuit-tracer's."
    ),
    nodes=Flag(metavar="N", help="Nodes of a graph with full edges."),
    mass=Flag(metavar="SHARE", help="Instead: as many as hold this share of first-order effects."),
    choose_by=Flag(help="By what nodes of a graph with full edges are chosen."),
    named=Flag("--node", metavar="NODE", help="Instead: a node by its name; several times."),
    basis=Flag(help="What can be a node of it; several times.  [default: the model's features]"),
    max_feature_nodes=Flag("--max-features", help="Feature nodes per graph, at most."),
    select_by=Flag(help="What weighs the choice of feature nodes."),
    **_BATCHES,
)
measuring_options = OptionSet(
    AttributionSettings, omit=set(AttributionSettings.model_fields) - set(_BATCHES), **_BATCHES
)
"""In what batches and memory edges are computed."""


def attribution_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command that builds graphs; see `attribution_settings`."""
    scores_only = click.option("--scores-only", is_flag=True, help="Keep scores, drop edges.")
    return _attribution(scores_only(command))


attribution_shape_options = _attribution


def attribution_settings(options: dict[str, Any], *, top_k: int = 10) -> AttributionSettings:
    """What `attribution_options` ask for."""
    return _attribution.read(options, top_k=top_k)


_engine = OptionSet(
    EngineSettings,
    engine=Flag(metavar="local|ray[://HOST:PORT]", help="Where the work is done."),
    workers=Flag(metavar="N", help="Processes that share the work, each with the models."),
    gpus_per_worker=Flag(metavar="GPUS", help="GPUs that Ray keeps for each worker."),
    share=Flag(metavar="I/N", help="Part I of N of the work, for job arrays: 0/8 to 7/8."),
)
engine_options = options(_engine, "engine")
"""The options of every command whose work can be spread over workers."""


@dataclass(frozen=True)
class Session:
    """The global options of one invocation."""

    options: dict[str, Any]
    sitting: SharedPair | None = None
    """What stays loaded between the commands of a shell."""

    def __getstate__(self) -> dict[str, Any]:
        """Without what is loaded: a worker loads its own."""
        return {"options": self.options, "sitting": None}

    @cached_property
    def root(self) -> Path:
        """The root, looked at once where it is not a folder.

        Raises:
            RequestError: See `artefact_root` and `require_store`.
        """
        root = artefact_root(self.options["root"])
        require_store(root, self.options["store"])
        return root

    @property
    def seed(self) -> int:
        return int(self.options["seed"])

    @property
    def embedded(self) -> bool:
        """The base model is an embedded organism's."""
        return self.options["base"] is None

    @property
    def templated(self) -> bool:
        """The base model is a toy's, whose corpus is made of templates."""
        return self.embedded and self.organism in TOYS

    @property
    def organism(self) -> str:
        """The embedded organism that is meant where no base is given."""
        return self.options["organism_name"] or TOY

    def workspace(
        self,
        *,
        create: bool = False,
        root: str | None = None,
        attribution: AttributionSettings | None = None,
    ) -> Workspace:
        """The workspace of a command.

        Args:
            create: The command may make the store.
            root: Another root than the command's, with the store that stands under it.
            attribution: What the memory plan allows for.
        """
        return Workspace(
            root=self.root if root is None else artefact_root(root),
            models=self.models(),
            store_url=self.options["store"] if root is None else None,
            seed=self.seed,
            create=create,
            attribution=attribution or AttributionSettings(),
            progress=self.bars(),
            sitting=self.sitting,
        )

    @contextmanager
    def on_prompts(self, *prompts: str, by_workers: bool = False) -> Iterator[Workspace]:
        """The workspace of a command about stored prompts.

        Args:
            by_workers: Workers load the models, not this process.

        Raises:
            RequestError: If the store, a prompt or a model's directory is missing; before anything
                heavy is imported.
        """
        with self.workspace() as work:
            stored = work.store.prompts
            found = [stored.get(prompt) for prompt in prompts]
            work.steers = True
            work.n_pos = max((len(one.token_ids or ()) for one in found), default=0) or None
            work.announce(by_workers=by_workers)
            yield work

    def bars(self) -> Bars:
        """The command's progress bars, closed when it ends, in whatever way."""
        context = click.get_current_context()
        bars: Bars | None = context.meta.get(_BARS)
        if bars is None:
            bars = context.meta[_BARS] = Bars()
            context.call_on_close(bars.close)
        return bars

    @property
    def default_store(self) -> Path:
        """Where the store is unless ``--store`` says otherwise."""
        return self.root / "results" / DEFAULT_NAME

    @property
    def store_name(self) -> str:
        """The store as provenance names it: a password never leaves the command line."""
        url = self.options["store"]
        return address(url).shown if url else str(self.default_store)

    def open_store(self, *, create: bool = False) -> Store:
        """The store alone, for commands that need no model.

        Raises:
            RequestError: If it is missing and may not be made, or is unreadable.
        """
        return Store.open(self.options["store"] or default_url(self.root), create=create)

    def chat_renderer(self) -> ChatRenderer:
        """What puts the model's chat template around the chats of a file; loads the tokenizer."""
        from em_circuits.labelling.sources import chat_renderer

        return chat_renderer(self.workspace().tokenizer)

    def keep_import(self, file: Path, report: Mapping[str, Any]) -> Path:
        """Store what became of an imported file, under its name and hash; returns the path."""
        digest = sha256_file(file) if file.is_file() else None
        name = f"{file.stem}-{(digest or 'tree')[:12]}.json"
        path = self.root / "results" / "imports" / name
        write_json(path, {"file": str(file), "sha256": digest, **report})
        return path

    def command(self) -> str:
        """This invocation up to the command, so that what is printed can be pasted."""
        called = Path(sys.argv[0])
        program = called.name == "em-circuits" and called.is_file()
        words = [str(called) if program else "em-circuits"]
        for option in ("organism", "base", "adapter", "merged", "transcoders", "store"):
            name = "organism_name" if option == "organism" else option
            if (value := self.options[name]) is not None:
                words += [f"--{option}", without_password(value) if name == "store" else value]
        if self.options["root"] != ".":
            words += ["--root", str(self.root)]
        return shlex.join(words)

    def card_hint(self, nodes: str) -> str:
        """The line that names the validity card of some nodes."""
        return f"what the claim is worth: {self.command()} validity --all --nodes {nodes}"

    def models(self) -> PairSettings:
        """Which models; the embedded organism's parts stand in for what is not given.

        Raises:
            RequestError: If a model of one's own is given without transcoders or fine-tune, or
                beside an organism.
        """
        named = {name: self.options[name] for name in ("base", "adapter", "merged", "transcoders")}
        parts = embedded_parts(named, self.options["organism_name"])
        return model_options.read(self.options | parts)

    def judge_spec(self, judge: str | None) -> str:
        """The judge that is meant: the one given, or the organism's own lexicon.

        Raises:
            RequestError: If none is given for a model of one's own.
        """
        if judge is not None:
            return judge
        if not self.embedded:
            raise RequestError("--judge is needed, for example --judge lexicon:words.yaml")
        return f"lexicon:{organism_paths(self.organism).lexicon}"


def in_pieces(
    work: Workspace,
    engine: EngineSettings,
    command: Callable[[Workspace], Result],
    *,
    needs_models: bool = True,
) -> Result:
    """Run what a command does in a workspace; its pieces by workers, if any were asked for.

    Args:
        command: Picklable; in this process it finds what workers did.

    Raises:
        OthersLeft: If all that is left is of other shares.
    """
    if engine.spreads:
        from em_circuits.engine.distributed import DistributedPieces

        pieces = DistributedPieces(work, command, engine, needs_models=needs_models)
        with stop_on_interrupt(pieces.stop):
            pieces.run()
        if pieces.stopped:
            raise click.Abort
    work.portion = engine.portion
    return command(work)


def checked_text(flag: str, text: str) -> str:
    """A text of the command line that can be a prompt.

    Raises:
        RequestError: If it is empty, or not UTF-8.
    """
    if not text.strip():
        raise RequestError(f"{flag} is empty; give the text of a prompt")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{flag} is not valid UTF-8; give the text in UTF-8") from error
    return text


_BARS = f"{__name__}.bars"
"""Of a command's context: there is one set of bars, however many workspaces."""
pass_session = click.make_pass_decorator(Session)
