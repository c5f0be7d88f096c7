"""``em-circuits review``: people label the queue."""

from __future__ import annotations

import getpass
import os
import sys
from datetime import UTC, datetime
from typing import Annotated, Literal

import click
from pydantic import Field, ValidationError

from em_circuits.cli.options import Flag, Options, options
from em_circuits.cli.output import say
from em_circuits.cli.session import Session, pass_session
from pivotal_tokens.errors import RequestError
from pivotal_tokens.review import ReviewController, ReviewService, run_plain
from pivotal_tokens.review.browsing import Browsing
from pivotal_tokens.review.keys import key_map
from pivotal_tokens.schema import ReviewConfig
from pivotal_tokens.store import Wanted


class ReviewOptions(Options):
    """Who reviews which items, and how."""

    plain: bool = False
    """Lines in, lines out, instead of a whole screen."""
    reviewer: str | None = None
    """Whose labels these are. [default: the login name]"""
    lease: float = Field(default=900.0, ge=1)
    """Seconds an item stays taken without a sign of life."""
    skipped: bool = False
    """Show skipped items again."""
    only: Literal["flagged"] | None = None
    """Without unflagged controls (then nothing is learnt about what the judge misses)."""
    since: Annotated[str | None, Flag(metavar="TIME")] = None
    """Queued since: 2026-11-20, or 2026-11-20T14:00."""
    ids: Annotated[tuple[str, ...], Flag("--id", "ids", metavar="ID")] = ()
    """Of these prompts (or beginnings)."""
    order: Literal["queue", "evil-mass", "uncertainty"] = "queue"
    """What comes first."""
    adjudicate: bool = False
    """Decide what reviewers disagree on."""
    hide_low: bool = False
    """Begin with tokens under p .001 hidden."""
    keys: Annotated[tuple[str, ...], Flag("--key", "keys", metavar="ACTION=KEY")] = ()
    """Bind another key."""
    shared_out: Annotated[
        tuple[str, ...], Flag("--configure", "shared_out", metavar="NAME=VALUE")
    ] = ()
    """Change how the queue is shared, print it and end: overlap, control_share, calibration,
    repeat_share, seed."""


@click.command(epilog="Example: em-circuits review --only flagged --order uncertainty --key evil=f")
@options(ReviewOptions)
@pass_session
def review(session: Session, options: ReviewOptions) -> None:
    """Label the queue; every answer is stored before the next item is shown. `?` helps.

    Keys are bound here or in em-circuits.toml: [review] keys = ["evil=f", "skip=f2"].
    """
    if options.shared_out:
        _configure(session, options.shared_out)
        return
    bound = key_map(options.keys)
    if not options.plain and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise RequestError("review needs a terminal; use --plain for pipes and files")
    if not options.plain and os.environ.get("TERM", "dumb") == "dumb":
        raise RequestError("this terminal (TERM=dumb) has no cursor control; use --plain")
    wanted = Wanted(
        only_flagged=options.only == "flagged",
        since=_moment(options.since),
        prompts=options.ids,
        order=options.order.replace("-", "_"),  # type: ignore[arg-type]
    )
    with session.open_store() as store:
        person = options.reviewer or getpass.getuser()
        service = ReviewService(
            store,
            person,
            lease_seconds=options.lease,
            states=("pending", "deferred", *(("skipped",) if options.skipped else ())),
            wanted=wanted,
            adjudicate=options.adjudicate,
            seen=Browsing.of(store, person).seen,
        )
        if options.plain:
            run_plain(service, sys.stdin, sys.stdout)
            return
        from pivotal_tokens.review.terminal import run_terminal

        controller = ReviewController(service, show_low=not options.hide_low, auto_finish=True)
        done = run_terminal(controller, bound)
    say(f"{done.finished} finished, {done.rejected} rejected; everything is saved.")


def _configure(session: Session, settings: tuple[str, ...]) -> None:
    """Change how the store's queue is shared out, and print how it is now.

    Raises:
        RequestError: If there is no such setting, or the value does not fit it.
    """
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
    say("  ".join(f"{name}={value}" for name, value in config.model_dump().items()))


def _moment(text: str | None) -> datetime | None:
    """A time in UTC unless it names a zone."""
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise RequestError(f"--since {text}: write 2026-11-20 or 2026-11-20T14:00") from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)
