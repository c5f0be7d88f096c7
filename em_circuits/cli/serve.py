"""``em-circuits serve``: the web viewer, and the review queue in the browser."""

from __future__ import annotations

import contextlib
import getpass
import os
import signal
import sys
import threading
from collections.abc import Callable

import click

from em_circuits.cli.session import Session, pass_session


def _review_keys() -> tuple[str, ...]:
    """What em-circuits.toml binds for `em-circuits review`: the browser has the same keys."""
    defaults = click.get_current_context().find_root().default_map or {}
    return tuple(defaults.get("review", {}).get("keys", ()))


@click.command(epilog="Example: em-circuits --root runs/demo serve --read-only")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    default=8765,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Where the default is taken, a free one is; 0 for any free one.",
)
@click.option(
    "--allow-host",
    "allowed",
    multiple=True,
    metavar="NAME",
    help="A further name that browsers may call this server by.",
)
@click.option("--read-only", is_flag=True, help="Nothing can be changed: for showing to others.")
@click.option("--reviewer", help="Whose labels these are. [default: the login name]")
@click.option(
    "--neuronpedia",
    metavar="MODEL/SOURCE",
    help="Links features there, as in gemma-2-2b/{layer}-gemmascope-transcoder-16k.",
)
@click.option(
    "--key",
    "keys",
    multiple=True,
    default=_review_keys,
    metavar="ACTION=KEY",
    help="Bind another key of the review page, as in review --key. [default: those of [review] in "
    "em-circuits.toml]",
)
@click.option("--lease", default=1800.0, show_default=True, help="Seconds an item stays taken.")
@pass_session
def serve(
    session: Session,
    host: str,
    port: int,
    allowed: tuple[str, ...],
    read_only: bool,
    reviewer: str | None,
    keys: tuple[str, ...],
    lease: float,
    neuronpedia: str | None,
) -> None:
    """Serve the viewer until Ctrl-C.

    The first line of standard output is a link that lets one browser in, once. Enter prints a link
    for another one.
    """
    from em_circuits.viewer import Sessions, ViewerSettings, create_app
    from em_circuits.viewer.server import address, listening
    from em_circuits.viewer.server import serve as answer

    settings = ViewerSettings(
        host=host,
        port=port,
        allowed_hosts=allowed,
        read_only=read_only,
        lease_seconds=lease,
        review_keys=keys,
        neuronpedia=neuronpedia,
    )
    sessions = Sessions(reviewer or getpass.getuser())
    with session.workspace() as work, listening(settings) as opened:
        app = create_app(work, settings, sessions)
        url = address(settings, opened)

        def show_link() -> None:
            print(f"{url}?token={sessions.new_link()}", flush=True)

        def ready() -> None:
            show_link()
            notes = ["Ctrl-C ends it, Enter prints a link for another browser."]
            if opened.getsockname()[1] != port and port:
                notes.insert(0, f"Port {port} is in use; this is another one.")
            if host not in ("127.0.0.1", "localhost", "::1"):
                notes.insert(0, f"Listening on {host}: others reach it, with a link of their own.")
            click.echo("\n".join(notes), err=True)
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
