"""``em-circuits review``: a person labels what the judge flagged."""

from __future__ import annotations

import getpass
import sys

import click

from em_circuits.cli.session import Session, pass_session


@click.command(epilog="Example: em-circuits review --plain --reviewer ada")
@click.option("--plain", is_flag=True, help="Lines in, lines out (the only interface so far).")
@click.option("--reviewer", help="Whose labels these are. [default: the login name]")
@click.option("--lease", default=900.0, show_default=True, help="Seconds an item stays taken.")
@click.option("--skipped", is_flag=True, help="Show skipped items again.")
@pass_session
def review(
    session: Session, plain: bool, reviewer: str | None, lease: float, skipped: bool
) -> None:
    """Label the queue; every answer is kept before the next item is shown. `?` helps."""
    from pivotal_tokens.review import ReviewService, run_plain

    with session.open_store() as store:
        service = ReviewService(
            store,
            reviewer or getpass.getuser(),
            lease_seconds=lease,
            states=("pending", "deferred", "skipped") if skipped else ("pending", "deferred"),
        )
        run_plain(service, sys.stdin, sys.stdout)
