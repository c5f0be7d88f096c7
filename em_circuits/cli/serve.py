"""``em-circuits serve``: the web viewer, and the review queue in the browser."""

from __future__ import annotations

import contextlib
import getpass
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from em_circuits.cli.options import Flag, OptionSet
from em_circuits.cli.output import say
from em_circuits.cli.session import Session, pass_session
from em_circuits.viewer.settings import LOCAL_NAMES, ViewerSettings
from pivotal_tokens.errors import RequestError
from pivotal_tokens.review.display import visible
from pivotal_tokens.review.service import require_no_judge


def _review_keys() -> tuple[str, ...]:
    """What em-circuits.toml binds for `em-circuits review`: the browser has the same keys."""
    defaults = click.get_current_context().find_root().default_map or {}
    return tuple(defaults.get("review", {}).get("keys", ()))


_settings = OptionSet(
    ViewerSettings,
    omit=("max_body", "max_nodes", "max_edges"),
    allowed_hosts=Flag("--allow-host", "allowed", metavar="NAME"),
    neuronpedia=Flag(metavar="MODEL/SOURCE"),
    lease_seconds=Flag("--lease"),
    review_keys=Flag(
        "--key",
        "keys",
        default=_review_keys,
        metavar="ACTION=KEY",
        help="Bind another key of the review page, as in review --key. [default: those of "
        "[review] in em-circuits.toml]",
    ),
)


@click.command(epilog="Example: em-circuits --root runs/demo serve --read-only")
@_settings
@click.option("--reviewer", help="Whose labels these are. [default: the login name]")
@click.option(
    "--reviewers",
    "file",
    type=click.Path(path_type=Path),
    help="A name a line: each gets a signed link, and nobody is let in without one.",
)
@pass_session
def serve(session: Session, reviewer: str | None, file: Path | None, **options: Any) -> None:
    """Serve the viewer until Ctrl-C.

    The first line of standard output is a link that lets one browser in, once. Enter prints a link
    for another one.

    With --reviewers there is a line of link and name for each: labels that come in by a link are of
    that name alone, and a link is good until the server ends.
    """
    settings = _settings.read(options)
    if reviewer is not None and file is not None:
        raise RequestError("--reviewer and --reviewers both say who reviews; keep one of them")

    from em_circuits.viewer import Sessions, create_app
    from em_circuits.viewer.identity import read_reviewers
    from em_circuits.viewer.server import listening, url_of
    from em_circuits.viewer.server import serve as answer

    names = () if file is None else read_reviewers(file)
    sessions = Sessions(reviewer or getpass.getuser(), reviewers=names)
    with session.workspace() as work, listening(settings) as opened:
        for name in names:
            require_no_judge(work.store, name)
        app = create_app(work, settings, sessions)
        url = url_of(settings, opened)

        def show_link() -> None:
            if not names:
                print(f"{url}?token={sessions.new_link()}", flush=True)
            for name in names:
                print(f"{url}?token={sessions.link_of(name)}  {visible(name, spaces=False)}")
            sys.stdout.flush()

        def ready() -> None:
            show_link()
            links = "the links again" if names else "a link for another browser"
            notes = [f"Ctrl-C ends it, Enter prints {links}."]
            if settings.port not in (0, opened.getsockname()[1]):
                notes.insert(0, f"Port {settings.port} is in use; this is another one.")
            if settings.host not in LOCAL_NAMES:
                notes.insert(
                    0, f"Listening on {settings.host}: others reach it, with a link of their own."
                )
            say("\n".join(notes), err=True)
            _on_enter(show_link)

        answer(app, opened, ready=ready)


def _on_enter(act: Callable[[], None]) -> None:
    """Act on every line of standard input, in the background."""
    if sys.stdin is None or sys.stdin.closed:
        return
    if hasattr(signal, "SIGTTIN"):
        # A job in the background may not read the terminal: it shall go on, not stop.
        signal.signal(signal.SIGTTIN, signal.SIG_IGN)

    def read() -> None:
        opened = os.fdopen(os.dup(sys.stdin.fileno()))
        with contextlib.suppress(OSError, ValueError), opened as lines:
            for _ in lines:
                act()

    threading.Thread(target=read, daemon=True, name="enter").start()
