"""``em-circuits review``: people label the queue."""

from __future__ import annotations

import getpass
import os
import sys
from datetime import UTC, datetime

import click

from em_circuits.cli.session import Session, pass_session
from pivotal_tokens.errors import RequestError


@click.command(epilog="Example: em-circuits review --only flagged --order uncertainty --key evil=f")
@click.option("--plain", is_flag=True, help="Lines in, lines out, instead of a whole screen.")
@click.option("--reviewer", help="Whose labels these are. [default: the login name]")
@click.option(
    "--lease",
    default=900.0,
    show_default=True,
    type=click.FloatRange(min=1),
    help="Seconds an item stays taken without a sign of life.",
)
@click.option("--skipped", is_flag=True, help="Show skipped items again.")
@click.option(
    "--only",
    type=click.Choice(["flagged"]),
    help="Without unflagged controls (then nothing is learnt about what the judge misses).",
)
@click.option("--since", metavar="TIME", help="Queued since: 2026-11-20, or 2026-11-20T14:00.")
@click.option("--id", "ids", multiple=True, metavar="ID", help="Of these prompts (or beginnings).")
@click.option(
    "--order",
    type=click.Choice(["queue", "evil-mass", "uncertainty"]),
    default="queue",
    show_default=True,
    help="What comes first.",
)
@click.option("--adjudicate", is_flag=True, help="Decide what reviewers disagree on.")
@click.option("--hide-low", is_flag=True, help="Begin with tokens under p .001 hidden.")
@click.option("--key", "keys", multiple=True, metavar="ACTION=KEY", help="Bind another key.")
@click.option(
    "--configure",
    "shared_out",
    multiple=True,
    metavar="NAME=VALUE",
    help="Share the queue out so from now on, print that and end: overlap, control_share, "
    "calibration, repeat_share, seed.",
)
@pass_session
def review(
    session: Session,
    plain: bool,
    reviewer: str | None,
    lease: float,
    skipped: bool,
    only: str | None,
    since: str | None,
    ids: tuple[str, ...],
    order: str,
    adjudicate: bool,
    hide_low: bool,
    keys: tuple[str, ...],
    shared_out: tuple[str, ...],
) -> None:
    """Label the queue; every answer is kept before the next item is shown. `?` helps.

    Keys are bound here or in em-circuits.toml: [review] keys = ["evil=f", "skip=f2"].
    """
    from pivotal_tokens.review import ReviewController, ReviewService, run_plain
    from pivotal_tokens.review.keys import key_map
    from pivotal_tokens.store import Wanted

    if shared_out:
        _configure(session, shared_out)
        return
    bound = key_map(keys)
    if not plain and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise RequestError("review needs a terminal; use --plain for pipes and files")
    if not plain and os.environ.get("TERM", "dumb") == "dumb":
        raise RequestError("this terminal (TERM=dumb) has no cursor control; use --plain")
    with session.open_store() as store:
        service = ReviewService(
            store,
            reviewer or getpass.getuser(),
            lease_seconds=lease,
            states=("pending", "deferred", "skipped") if skipped else ("pending", "deferred"),
            wanted=Wanted(
                only_flagged=only == "flagged",
                since=_moment(since),
                prompts=ids,
                order=order.replace("-", "_"),  # type: ignore[arg-type]
            ),
            adjudicate=adjudicate,
        )
        if plain:
            run_plain(service, sys.stdin, sys.stdout)
            return
        from pivotal_tokens.review.terminal import run_terminal

        controller = ReviewController(service, show_low=not hide_low, auto_finish=True)
        done = run_terminal(controller, bound)
    click.echo(f"{done.finished} finished, {done.rejected} rejected; everything is saved.")


def _configure(session: Session, settings: tuple[str, ...]) -> None:
    """Change how the store's queue is shared out, and print how it is now.

    Raises:
        RequestError: If there is no such setting, or the value does not fit it.
    """
    from pydantic import ValidationError

    from pivotal_tokens.schema import ReviewConfig

    given = dict(setting.partition("=")[::2] for setting in settings)
    with session.open_store(create=True) as store:
        try:
            config = ReviewConfig.model_validate(store.assignments.config().model_dump() | given)
        except ValidationError as error:
            (first, *_) = error.errors(include_url=False, include_context=False)
            known = ", ".join(ReviewConfig.model_fields)
            raise RequestError(
                f"--configure {first['loc'][0]}={first['input']}: {first['msg']}; "
                f"there are {known}, as in --configure overlap=2"
            ) from None
        store.assignments.set_config(config)
    click.echo("  ".join(f"{name}={value}" for name, value in config.model_dump().items()))


def _moment(text: str | None) -> datetime | None:
    """A time in UTC unless it names a zone."""
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise RequestError(f"--since {text}: write 2026-11-20 or 2026-11-20T14:00") from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)
