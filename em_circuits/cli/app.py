"""The ``em-circuits`` command: global options, command groups, and how errors are shown."""

from __future__ import annotations

import importlib
import itertools
import logging
import os
import shlex
import sys
import tempfile
import tomllib
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from em_circuits import __version__
from em_circuits.cli.interrupt import end_as_by_interrupt
from em_circuits.cli.output import say
from em_circuits.cli.session import Session, model_options, organism_option
from em_circuits.models.memory_error import ran_out
from em_circuits.pieces import OthersLeft
from em_circuits.progress import above_bars
from em_circuits.workspace import SharedPair, refuse_two_bases
from pivotal_tokens.errors import RequestError, WorkFailed
from pivotal_tokens.review.display import harmless
from pivotal_tokens.store.address import without_password

CONFIG_FILE = "em-circuits.toml"
FAULT = 70
"""Exit status of an error that nothing foresaw."""

_COMMANDS = {
    "demo": ("demo:demo", "Prompts, labels, graphs, features, steering and mediation in one go."),
    "doctor": (
        "doctor:doctor",
        "Versions, devices, precision, SQLite, memory plan, health of the model pair.",
    ),
    "label": (
        "label:label",
        "Label prompts: next tokens of both models, judge, queue, rollouts, graphs.",
    ),
    "review": (
        "review:review",
        "Label the queue; every answer is stored before the next item is shown.",
    ),
    "serve": ("serve:serve", "Serve the viewer until Ctrl-C."),
    "shell": ("shell:shell", "Take one command after another; the models are loaded once."),
    "status": (
        "status:status",
        "Progress of the store; with PROMPT (an id or unique prefix) all about one attempt.",
    ),
    "prompts": ("prompts:prompts", "Add, generate, import, preview and list prompts."),
    "labels": ("labels:labels", "Show, export, import and compare labels."),
    "export": (
        "labels:export",
        "Prompts, next tokens, judgements, verdicts, labels and reviews, to one file or a "
        "directory.",
    ),
    "import": (
        "labels:import_",
        "Import an export; what is here stays, and contradicting labels are queued.",
    ),
    "judge": ("judge:judge", "Measure judges against people; show how they are asked."),
    "graphs": (
        "graphs:graphs",
        "Build, list, show, import, export, verify and prune attribution graphs.",
    ),
    "verify": (
        "verify:verify",
        "Compare the store, every graph and every result with what was written.",
    ),
    "influence": (
        "influence:influence",
        "Influence of every node of a graph on its targets; positive raises the target.",
    ),
    "features": (
        "features:features",
        "Rank features, and measure which of them carry the shift from base to merged.",
    ),
    "lora": ("lora:lora", "The adapter itself: its modules, what its ranks read, write and do."),
    "transcoders": (
        "transcoders:transcoders",
        "Train sets, convert those of SAELens and sparsify, check any set.",
    ),
    "steer": ("steer:steer", "Interventions on the model itself, with controls."),
    "validity": (
        "validity:validity",
        "The validity card of a circuit: necessary, sufficient, minimal, specific, stable?",
    ),
    "evaluate": (
        "evaluate:evaluate",
        "Ask open questions, judge the answers for alignment and coherence, count.",
    ),
    "audit": (
        "audit:audit",
        "Audit a fine-tune without labels, calibrate audits, serve them as tools.",
    ),
    "responses": (
        "responses:responses",
        "Judged answers: import them, and find the nodes that tell misaligned from aligned.",
    ),
    "directions": (
        "directions:directions",
        "Mean-difference direction of the residual stream, found and tried on judged answers.",
    ),
    "probe": (
        "probe:probe",
        "Linear probes by component, layer and position, beside what they can move.",
    ),
    "organism": (
        "organism:organism",
        "Train an embedded model organism anew, measure one that is shipped, fetch a real base.",
    ),
}
"""Command -> module:function under `em_circuits.cli`, and its line of the help of all commands."""
_IN_THE_SHELL = {"next": "shell:next_tokens"}
"""Commands of the shell alone."""


_SECTIONS = {
    "Begin": ("demo", "label", "review", "serve", "status", "doctor", "shell"),
    "Prompts and labels": ("prompts", "labels", "judge", "export", "import"),
    "Graphs and features": ("graphs", "influence", "features", "lora", "transcoders"),
    "Experiments": ("steer", "validity", "evaluate", "responses", "directions", "probe"),
    "Audits": ("audit",),
    "Upkeep": ("verify", "organism"),
}
"""How the help of all commands groups them; each stands in one group."""

_TALKATIVE = (
    "py.warnings",
    "transformers",
    "transformer_lens",
    "httpx",
    "httpx2",  # what openai asks with, where it is there
    "filelock",
    "nnsight",
)
"""Loggers of libraries that say little to whoever runs a command."""


class LazyGroup(click.Group):
    """The commands, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = _COMMANDS.get(cmd_name, (None,))[0]
        if place is None and ctx.obj is not None:
            place = _IN_THE_SHELL.get(cmd_name)
        if place is None:
            return None
        module, _, function = place.partition(":")
        command: click.Command = getattr(
            importlib.import_module(f"em_circuits.cli.{module}"), function
        )
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, _COMMANDS[name][1]) for name in names])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise click.NoSuchCommand(args[0], possibilities=_COMMANDS, ctx=ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    context_settings={"auto_envvar_prefix": "EM_CIRCUITS", "help_option_names": ["-h", "--help"]},
    epilog="Example: em-circuits --root runs/first label --n 12 --json",
)
@click.version_option(__version__, prog_name="em-circuits")
@organism_option
@model_options
@click.option(
    "--store",
    metavar="URL",
    help="sqlite:///PATH or postgresql+psycopg://USER@HOST/DATABASE. [default: under ROOT/results]",
)
@click.option(
    "--root",
    type=click.Path(file_okay=False),
    default=".",
    show_default=True,
    help="Holds results/ and graph_storage/; or s3://BUCKET/PREFIX.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of everything that is drawn.",
)
@click.option("-v", "--verbose", is_flag=True, help="Say more on standard error.")
@click.pass_context
def app(context: click.Context, verbose: bool, **options: Any) -> None:
    """Which transcoder features carry emergent misalignment in a LoRA fine-tune?

    The options below are of every command; they can also stand in em-circuits.toml or in
    EM_CIRCUITS_* variables.
    """
    _configure_logging(verbose)
    refuse_two_bases(options["base"], options["organism_name"])
    context.obj = Session(options, context.obj)


def main() -> None:
    """Run the command line and leave with its exit status."""
    end_as_by_interrupt()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(run(sys.argv[1:]))


def run(
    arguments: Sequence[str],
    sitting: SharedPair | None = None,
    options: Mapping[str, Any] | None = None,
) -> int:
    """Run one command line and return its exit status; errors go to standard error.

    Args:
        sitting: What stays loaded, of a shell's commands.
        options: Global options where neither the line nor the environment gives others.
    """
    try:
        defaults = _config_file(Path(CONFIG_FILE)) | dict(options or {})
        left = app.main(
            list(arguments),
            "em-circuits",
            standalone_mode=False,
            default_map=defaults,
            obj=sitting,
        )
        return left if type(left) is int else 0  # the status of a command that left early
    except click.Abort:
        return _say(
            "interrupted; finished work is stored, run the same command again to resume", 130
        )
    except click.NoSuchOption as error:
        again = _reordered(error, arguments)
        if again is None or again == list(arguments):
            return _say(error.format_message(), 2)
        return run(again)  # no command has begun: its options are read before it does anything
    except click.ClickException as error:
        return _say(error.format_message(), 2)
    except RequestError as error:
        return _say(str(error), 2)
    except WorkFailed as error:
        return _say(str(error), 1)
    except OthersLeft as done:
        return _say(str(done), 0)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"{where}{error.strerror or error}; check the path, or choose --root", 1)
    except (MemoryError, RuntimeError) as error:
        return _say(_out_of_memory(error, arguments), 1) if ran_out(error) else _fault(error)
    except Exception as error:  # the last net: what is not foreseen is this program's own
        return _fault(error)


def _out_of_memory(error: Exception, arguments: Sequence[str]) -> str:
    """What did not fit, and the next smaller setting that was not asked for yet."""
    command: click.Command = app
    for word in arguments:
        if isinstance(command, click.Group) and word in command.list_commands(click.Context(app)):
            command = command.get_command(click.Context(app), word) or command
    typed = {word.partition("=")[0] for word in arguments}
    known = {name for of in (app, command) for one in of.params for name in one.opts}
    smaller = (
        ("--transcoders-on", "--transcoders-on disk"),
        ("--batch-size", "--batch-size 16"),
        ("--dtype", "--dtype bfloat16"),
        ("--max-features", "--max-features 256"),
        ("--nodes", "--nodes 128"),
    )
    left = [setting for name, setting in smaller if name in known - typed]
    advice = f"try {left[0]}" if left else "try a smaller value of the options given, or less text"
    detail = " ".join(str(error).split())[:120].split(". GPU")[0]
    return f"out of memory ({detail or 'allocation failed'}); finished work is stored; {advice}"


def _fault(error: Exception) -> int:
    """Say where the traceback of an unforeseen error lies; 70 is EX_SOFTWARE of sysexits.h."""
    text = "".join(traceback.format_exception(error))
    kind, first = type(error).__name__, " ".join(str(error).split())[:160]
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="em-circuits-", suffix=".log", delete=False, encoding="utf-8"
        ) as file:
            typed = [without_password(word) if "://" in word else word for word in sys.argv[1:]]
            file.write(f"em-circuits {__version__}: {shlex.join(typed)}\n\n{text}")
        place = f"report it with {file.name}"
    except OSError:
        place = f"report it with this:\n{text}"
    return _say(f"this is a fault of em-circuits ({kind}: {first}); {place}", FAULT)


def _reordered(error: click.NoSuchOption, arguments: Sequence[str]) -> list[str] | None:
    """The line that works, where options that stand before the command were typed after it."""
    options = {
        name: option
        for option in app.params
        if isinstance(option, click.Option)
        for name in option.opts
    }
    if error.option_name not in options:
        return None
    front: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        name, given, _ = word.partition("=")
        option = options.get(name)
        into = rest if option is None else front
        into.append(word)
        if option is not None and not option.is_flag and not given:
            front += itertools.islice(words, 1)
    return [*front, *rest]


def _say(message: str, status: int) -> int:
    say(f"em-circuits: {message}", err=True)
    return status


def _config_file(path: Path) -> dict[str, Any]:
    """Defaults from ``em-circuits.toml``: global options at the top, a table per command.

    Raises:
        RequestError: If the file is not TOML, or names an option that does not exist.
    """
    if not os.path.lexists(path):  # a link to nowhere is an error, not a missing file
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        if any(line.count(".") > 100 for line in text.split("\n")):
            # tomllib takes gigabytes for a key of tens of thousands of parts.
            raise RequestError(f"{path}: a line has more than a hundred dots")
        config = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # of an integer of 5,000 digits, of brackets
        raise RequestError(f"{path}: not TOML: {error}") from error
    return _checked(path, "", app, config)


def _checked(path: Path, where: str, command: click.Command, given: Any) -> dict[str, Any]:
    """Defaults of one command, its options and subcommands known and of the right kind."""
    if not isinstance(given, dict):
        raise RequestError(f"{path}: {where or 'the file'} must be a table of options")
    options = {p.name for p in command.params if isinstance(p, click.Option)}
    context = click.Context(command)
    names = command.list_commands(context) if isinstance(command, click.Group) else []
    checked: dict[str, Any] = {}
    for key, value in given.items():
        name, place = key.replace("-", "_"), f"{where}.{key}".lstrip(".")
        if key in names and f"{key}_name" in options and not isinstance(value, dict):
            # organism = "..." is the option, [organism.train] the command
            key = name = f"{key}_name"
        if key in names:
            child = command.get_command(context, key)  # type: ignore[attr-defined]
            checked[key] = _checked(path, place, child, value)
        elif name not in options:
            raise RequestError(f"{path}: no option or command {place}")
        elif isinstance(value, dict):
            raise RequestError(f"{path}: {place} is an option, not a table")
        else:
            checked[name] = value if isinstance(value, bool | list) else str(value)
    return checked


class _StandardError(logging.StreamHandler[Any]):
    """Writes to standard error as it is when something is logged, above the bars that stand there.

    The handler outlives the command, and a stream of the moment may be closed by then.
    """

    def __init__(self) -> None:
        logging.Handler.__init__(self)  # that of StreamHandler binds a stream

    @property
    def stream(self) -> Any:
        return sys.stderr

    def format(self, record: logging.LogRecord) -> str:
        return harmless(super().format(record))

    def emit(self, record: logging.LogRecord) -> None:
        with above_bars(self.stream):
            super().emit(record)


def _configure_logging(verbose: bool) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(
        level=level,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        handlers=[_StandardError()],
        force=True,
    )
    logging.captureWarnings(True)
    quiet = logging.WARNING if verbose else logging.ERROR
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(quiet)
