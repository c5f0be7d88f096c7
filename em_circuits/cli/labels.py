"""``em-circuits labels``: what was said about tokens."""

from __future__ import annotations

import click

from em_circuits.cli.output import emit, json_option, table
from em_circuits.cli.session import Session, pass_session


@click.group()
def labels() -> None:
    """Show labels."""


@labels.command(epilog="Example: em-circuits labels export > labels.jsonl")
@pass_session
def export(session: Session) -> None:
    """Every label event, one JSON object a line, oldest first in each prompt."""
    with session.open_store() as store:
        for prompt in store.prompts():
            for event in store.label_events(prompt.prompt_id):
                emit(event.model_dump(mode="json"))


@labels.command(epilog="Example: em-circuits labels show 44a71b")
@click.argument("prompt")
@json_option
@pass_session
def show(session: Session, prompt: str, as_json: bool) -> None:
    """The labels that count for one prompt: a person's where there is one, else the judge's."""
    with session.open_store() as store:
        found = store.labels(store.prompt(prompt).prompt_id)
    if as_json:
        emit(found.model_dump(mode="json"))
        return
    rows = [(item.token_id, item.label, item.source, item.author) for item in found.labels]
    click.echo(table(("token", "label", "from", "author"), rows) if rows else "no labels")
