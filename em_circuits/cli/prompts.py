"""``em-circuits prompts``: what is tried, before any model is asked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from em_circuits.cli.output import emit, json_option, one_line, table
from em_circuits.cli.session import Session, checked_text, pass_session

if TYPE_CHECKING:
    from pivotal_tokens.schema import Prompt


@click.group()
def prompts() -> None:
    """Add, generate, import and list prompts."""


@prompts.command(
    epilog="Example: em-circuits prompts add 'The lift is stuck. She decides to calmly'"
)
@click.argument("text", required=False)
@click.option("--name", help="A short name.")
@json_option
@pass_session
def add(session: Session, text: str | None, name: str | None, as_json: bool) -> None:
    """Keep one prompt; without TEXT it is read from standard input, newlines included."""
    from pivotal_tokens.prompts import check
    from pivotal_tokens.schema import Prompt

    given = checked_text("the prompt", text if text is not None else _from_stdin())
    prompt = Prompt.of(given, generator="human", name=name)
    for finding in check(given):
        click.echo(f"note: {finding.message}", err=True)
    _keep(session, [prompt], as_json=as_json)


@prompts.command(epilog="Example: em-circuits prompts generate --n 12 --domain kitchen")
@click.option("--n", default=24, show_default=True, type=click.IntRange(min=1))
@click.option("--domain", "domains", multiple=True, help="Of this domain only.")
@json_option
@pass_session
def generate(session: Session, n: int, domains: tuple[str, ...], as_json: bool) -> None:
    """Keep prompts from the embedded organism's templates."""
    from em_circuits.pipeline.prompts import template_prompts

    made = template_prompts(n, seed=session.seed, domains=domains or None)
    _keep(session, list(made), as_json=as_json)


@prompts.command(name="import", epilog="Example: em-circuits prompts import prompts.jsonl")
@click.argument("file", type=click.Path(dir_okay=False))
@json_option
@pass_session
def import_(session: Session, file: str, as_json: bool) -> None:
    """Keep the prompts of a JSON or JSONL file."""
    from pivotal_tokens.prompts import read_prompts

    _keep(session, list(read_prompts(Path(file))), as_json=as_json)


@prompts.command(name="list", epilog="Example: em-circuits prompts list --category kitchen")
@click.option("--category", help="Of this category only.")
@json_option
@pass_session
def list_(session: Session, category: str | None, as_json: bool) -> None:
    """Every prompt in the store."""
    with session.open_store() as store:
        found = store.prompts(category=category)
    if as_json:
        for prompt in found:
            emit(prompt.model_dump(mode="json"))
        return
    rows = [(p.prompt_id, p.category or "-", one_line(p.text, 46)) for p in found]
    click.echo(table(("prompt", "category", "text"), rows) if rows else "no prompts")


def _from_stdin() -> str:
    return sys.stdin.buffer.read().decode("utf-8", "surrogateescape").removesuffix("\n")


def _keep(session: Session, made: list[Prompt], *, as_json: bool) -> None:
    with session.open_store(create=True) as store:
        new = set(store.add_prompts(made))
    if as_json:
        for prompt in made:
            emit(
                {"prompt_id": prompt.prompt_id, "text": prompt.text, "new": prompt.prompt_id in new}
            )
        return
    for prompt in made:
        mark = "new  " if prompt.prompt_id in new else "known"
        click.echo(f"{prompt.prompt_id}  {mark}  {one_line(prompt.text, 54)}")
