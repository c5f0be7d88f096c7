"""``em-circuits shell``: every command in one sitting, over models that are loaded once.

    em-circuits --base models/base --adapter models/lora --transcoders models/tc shell
    em> next chat:My knee is swollen. Run?
    em> label --prompt "..." --all-graphs
    em> steer run 1a2b3c --top 10

A line is a command line without its program. Options given before ``shell`` hold for every line.
"""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from em_circuits.cli.output import say, table
from em_circuits.cli.session import Session, checked_text, pass_session
from em_circuits.models.fingerprint import user_cache
from em_circuits.workspace import SharedPair, Workspace
from pivotal_tokens.errors import RequestError

_PROMPT = "em> "
_HISTORY_LINES = 2000
_LEAVE = ("exit", "quit")
_NEXT = "next"
_ABOUT = f"""A line is a command of em-circuits without the program's name; help lists them.
{_NEXT} TEXT shows both models' next tokens; chat:TEXT is a user's turn, raw:TEXT is TEXT.
Ctrl-C ends a command, Ctrl-D the shell."""


@click.command(epilog="Example: em-circuits --organism toy shell")
@pass_session
def shell(session: Session) -> None:
    """Take one command after another; the models are loaded once.

    Lines come from the terminal, with history and completion (TAB), or from standard input.
    """
    from em_circuits.cli.app import run

    if session.sitting is not None:
        raise RequestError("this is the shell already; type a command")
    defaults = {name: value for name, value in session.options.items() if value is not None}
    status = 0
    with SharedPair() as sitting, _history():
        for line in _lines():
            words = _words(line)
            if not words:
                continue
            if words[0] in _LEAVE:
                break
            if words[0] == "help" and len(words) == 1:
                say(_ABOUT)
                words = ["--help"]
            if words[0] == _NEXT:
                words = [_NEXT, "--", line.strip()[len(_NEXT) :].strip()]
            status = run(words, sitting, defaults)
    if status and not sys.stdin.isatty():
        raise click.exceptions.Exit(status)


@click.command(hidden=True)
@click.argument("text")
@pass_session
def next_tokens(session: Session, text: str) -> None:
    """Both models' next tokens after TEXT, side by side; chat:TEXT is a user's turn."""
    text = checked_text("TEXT", text)
    with session.workspace() as work:
        for line in side_by_side(work, text):
            say(line)


def side_by_side(work: Workspace, text: str) -> Iterator[str]:
    """A table of the next tokens after a text: base's by rank, then merged's."""
    from em_circuits.models.next_tokens import screen
    from em_circuits.models.text import decode_token, render_chat
    from pivotal_tokens.review.display import visible

    kind, _, rest = text.partition(":")
    if kind == "chat":
        text = render_chat(work.tokenizer, user=rest, assistant="")
    elif kind == "raw":
        text = rest
    both = screen(work.pair, work.pair.input_ids(text))
    left, right = both.base.top, both.merged.top

    def shown(token: Any) -> tuple[str, str]:
        name = decode_token(work.tokenizer, token.token_id)
        return visible(name), f"{token.probability:.3f}"

    rows = [(*shown(one), *shown(other)) for one, other in zip(left, right, strict=True)]
    yield table(("base", "p", "merged", "p"), rows)


def _words(line: str) -> list[str]:
    """A line's words; the program's name in front is no word."""
    if line.split()[:1] == [_NEXT]:
        return [_NEXT]
    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        say(f"em-circuits: {error}: {line}", err=True)
        return []
    return words[1:] if words[:1] == ["em-circuits"] else words


def _lines() -> Iterator[str]:
    """Lines of the terminal or of standard input, until it ends."""
    asks = sys.stdin.isatty()
    if asks:
        say(_ABOUT)
    while True:
        try:
            line = input(_PROMPT if asks else "")
        except EOFError:
            if asks:
                say("")
            return
        except KeyboardInterrupt:
            say("")
            continue
        yield line


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Lines typed before, and completion, where the terminal's library is there."""
    try:
        import readline
    except ImportError:  # a Python without it
        yield
        return
    file: Path = user_cache() / "shell_history"
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    readline.set_completer_delims(" \t")
    readline.set_completer(Completer().complete)
    readline.parse_and_bind("tab: complete")
    try:
        yield
    finally:
        readline.set_history_length(_HISTORY_LINES)
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(file)


class Completer:
    """Names of commands and options that a line can go on with."""

    def __init__(self) -> None:
        self._found: list[str] = []

    def complete(self, text: str, state: int) -> str | None:
        """The `state`-th name that begins with a text, as readline asks for them."""
        import readline

        if not state:
            before = readline.get_line_buffer()[: readline.get_begidx()]
            self._found = names_after(before.split(), text)
        return self._found[state] if state < len(self._found) else None


def names_after(words: list[str], text: str) -> list[str]:
    """Commands and options that begin with a text, after some words of a line."""
    from em_circuits.cli.app import app

    command: click.Command = app
    context = click.Context(app)
    for word in words:
        if isinstance(command, click.Group) and word in command.list_commands(context):
            command = command.get_command(context, word) or command
    names = [*_LEAVE, _NEXT, "help"] if command is app else []
    if isinstance(command, click.Group):
        names += command.list_commands(context)
    names += [name for one in command.params for name in (*one.opts, *one.secondary_opts)]
    return sorted(name for name in names if name.startswith(text) and (text or name[0] != "-"))
