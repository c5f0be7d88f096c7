"""``em-circuits labels``: what was said about tokens, in and out, and what it amounts to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from em_circuits.cli.output import emit, json_option, table
from em_circuits.cli.session import Session, pass_session

if TYPE_CHECKING:
    from pivotal_tokens.labels import ImportReport

_LEFT_OUT_SHOWN = 5


@click.group()
def labels() -> None:
    """Show, export, import and compare labels."""


@labels.command(epilog="Example: em-circuits labels export labels.csv")
@click.argument("out", required=False, type=click.Path(path_type=Path))
@click.option(
    "--format",
    "kind",
    type=click.Choice(["jsonl", "csv", "parquet", "tree"]),
    help="[default: by the ending of OUT; JSONL without OUT]",
)
@json_option
@pass_session
def export(session: Session, out: Path | None, kind: str | None, as_json: bool) -> None:
    """Every label event with its prompt and token, to OUT or standard output.

    OUT is a .jsonl, .csv or .parquet file, or with --format tree a directory of JSON files.
    """
    from pivotal_tokens.artefacts import write_provenance
    from pivotal_tokens.errors import RequestError
    from pivotal_tokens.labels import FIELDS, label_records, write_records

    if out is None and kind in ("parquet", "tree"):
        raise RequestError(f"--format {kind} needs a place: em-circuits labels export OUT")
    with session.open_store() as store:
        if kind == "tree" and out is not None:
            from pivotal_tokens.labels.tree import write_tree

            files = write_tree(store, out)
            _told({"written": str(out), "files": files}, as_json, f"{files} files under {out}")
            return
        records = list(label_records(store))
    if out is None:
        _print_records(records, kind)
        return
    write_records(out, records, FIELDS, format=kind)
    write_provenance(
        out,
        inputs={"store": session.store_name},
        config={"command": "labels export", "format": kind},
        records=len(records),
    )
    _told(
        {"written": str(out), "records": len(records)}, as_json, f"{len(records)} records to {out}"
    )


@labels.command(name="import", epilog="Example: em-circuits labels import labels.csv")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "kind",
    type=click.Choice(["jsonl", "csv", "parquet", "tree"]),
    help="[default: by the ending; a directory is a tree]",
)
@click.option("--author", help="Whose labels these are where the file does not say.")
@click.option("--tokenizer", metavar="DIR", help="Finds ids of tokens that have only a text.")
@json_option
@pass_session
def import_(
    session: Session,
    file: Path,
    kind: str | None,
    author: str | None,
    tokenizer: str | None,
    as_json: bool,
) -> None:
    """Take labels in: duplicates are dropped, contradictions are queued, nothing is replaced.

    Exit status 1 if something in FILE could not be used; the rest is kept.
    """
    from pivotal_tokens.errors import WorkFailed
    from pivotal_tokens.labels import import_labels, read_records

    token_of = _token_finder(tokenizer)
    with session.open_store(create=file.exists()) as store:
        if kind == "tree" or (kind is None and file.is_dir()):
            from pivotal_tokens.labels.tree_import import import_tree

            report = import_tree(store, file, author=author or "predecessor", token_of=token_of)
        else:
            records = list(read_records(file, format=kind))
            report = import_labels(
                store, records, source=file.name, author=author, token_of=token_of
            )
    keep_report(session, file, report)
    if as_json:
        emit(report.model_dump(mode="json"))
    else:
        click.echo("\n".join(describe_import(report)))
    if report.left_out:
        raise WorkFailed(f"{len(report.left_out)} of {report.records} records were left out")


@labels.command(epilog="Example: em-circuits labels show 44a71b")
@click.argument("prompt")
@json_option
@pass_session
def show(session: Session, prompt: str, as_json: bool) -> None:
    """The labels that count for one prompt: a person's where there is one, else the judge's."""
    with session.open_store() as store:
        found = store.labels.of(store.prompts.get(prompt).prompt_id)
    if as_json:
        emit(found.model_dump(mode="json"))
        return
    rows = [(item.token_id, item.label, item.source, item.author) for item in found.labels]
    click.echo(table(("token", "label", "from", "author"), rows) if rows else "no labels")


@labels.command(epilog="Example: em-circuits labels conflicts --json")
@json_option
@pass_session
def conflicts(session: Session, as_json: bool) -> None:
    """Imported labels that contradict a person's and wait for a decision in the queue."""
    with session.open_store() as store:
        found = store.labels.conflicts()
    if as_json:
        for one in found:
            emit(one.model_dump(mode="json"))
        return
    rows = [
        (c.event.prompt_id, c.event.token_id, c.event.to_label, c.event.author, c.against, c.by)
        for c in found
    ]
    header = ("prompt", "token", "imported", "author", "here", "by")
    click.echo(table(header, rows) if rows else "no conflicts")


@labels.command(epilog="Example: em-circuits labels divergence --only-divergent")
@click.option(
    "--labels",
    "which",
    type=click.Choice(["human", "judge", "any"]),
    default="human",
    show_default=True,
    help="Whose labels; any: a person's before the judge's.",
)
@click.option("--judge", help="Of judges, only this one.")
@click.option("--only-divergent", is_flag=True, help="Leave the other prompts out of the table.")
@json_option
@pass_session
def divergence(
    session: Session, which: str, judge: str | None, only_divergent: bool, as_json: bool
) -> None:
    """Prompts where merged has an evil token and base none, on complete labels of both lists."""
    from em_circuits.cli.label_tables import describe_divergence, divergence_json
    from pivotal_tokens.labels import divergence as diverge

    with session.open_store() as store:
        found = diverge(store, labels=which, judge=judge)  # type: ignore[arg-type]
    if as_json:
        emit(divergence_json(found, only_divergent=only_divergent))
    else:
        click.echo("\n".join(describe_divergence(found, only_divergent=only_divergent)))


@labels.command(epilog="Example: em-circuits labels agreement")
@click.option("--resamples", default=2000, show_default=True, type=click.IntRange(min=0))
@json_option
@pass_session
def agreement(session: Session, resamples: int, as_json: bool) -> None:
    """Percent, kappa, AC1 and alpha between people, and between people and judges."""
    from em_circuits.cli.label_tables import describe_agreement
    from pivotal_tokens.labels import label_agreement

    with session.open_store() as store:
        found = label_agreement(store, resamples=resamples, seed=session.seed)
    if as_json:
        emit(found.model_dump(mode="json"))
    else:
        click.echo("\n".join(describe_agreement(found)))


@labels.command(epilog="Example: em-circuits labels plots verdicts.html --png verdicts.png")
@click.argument("out", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--png", type=click.Path(dir_okay=False, path_type=Path), help="A PNG as well.")
@json_option
@pass_session
def plots(session: Session, out: Path | None, png: Path | None, as_json: bool) -> None:
    """Verdicts and labels overall, by model and by judge, as one HTML file.

    OUT is ROOT/results/verdicts.html unless given.
    """
    from pivotal_tokens.artefacts import write_provenance
    from pivotal_tokens.errors import RequestError
    from pivotal_tokens.labels import plots as drawn

    with session.open_store() as store:
        counts = drawn.tally(store)
    if counts.empty:
        raise RequestError("no verdicts and no labels yet: run `em-circuits label` first")
    page = out or session.root / "results" / "verdicts.html"
    drawn.write_page(counts, page)
    made = [page]
    if png is not None:
        drawn.write_png(counts, png)
        made.append(png)
    for path in made:
        write_provenance(
            path,
            inputs={"store": session.store_name},
            config={"command": "labels plots"},
            counts=counts.model_dump(),
        )
    written = [str(path) for path in made]
    text = "\n".join([*drawn.summary(counts), *(f"wrote {path}" for path in written)])
    _told(counts.model_dump() | {"written": written}, as_json, text)


def _told(value: dict[str, Any], as_json: bool, text: str) -> None:
    if as_json:
        emit(value)
    else:
        click.echo(text)


def _print_records(records: list[dict[str, Any]], kind: str | None) -> None:
    from pivotal_tokens.labels import FIELDS
    from pivotal_tokens.labels.formats import csv_text

    if kind == "csv":
        click.echo(csv_text(records, FIELDS), nl=False)
        return
    for record in records:
        emit(record)


def _token_finder(tokenizer: str | None) -> Callable[[str], int | None] | None:
    """Text -> id of the one token that is exactly this text."""
    if tokenizer is None:
        return None
    from em_circuits.models.text import first_token
    from pivotal_tokens.errors import RequestError

    try:
        from transformers import AutoTokenizer

        loaded = AutoTokenizer.from_pretrained(tokenizer)
    except (OSError, ValueError) as error:
        raise RequestError(f"--tokenizer {tokenizer}: no tokenizer there") from error

    def find(text: str) -> int | None:
        if not text:
            return None
        token, whole = first_token(loaded, text)
        return token if whole else None

    return find


def keep_report(session: Session, file: Path, report: ImportReport) -> None:
    """What was imported, and from what, beside the store's other results."""
    from pivotal_tokens.artefacts import sha256_file, write_json

    digest = sha256_file(file) if file.is_file() else None
    name = f"{file.stem}-{(digest or 'tree')[:12]}.json"
    write_json(
        session.root / "results" / "imports" / name,
        {"file": str(file), "sha256": digest} | report.model_dump(mode="json"),
    )


def describe_import(report: ImportReport) -> list[str]:
    """What became of an import, in a few lines."""
    lines = [
        f"{report.records} records: {report.added} added, {report.duplicates} known already, "
        f"{report.conflicts} in conflict, {len(report.left_out)} left out; "
        f"{report.prompts} new prompts"
    ]
    if report.reviews or report.reviews_kept:
        lines.append(
            f"reviews: {report.reviews} seats answered as there, "
            f"{report.reviews_kept} left as they are here"
        )
    if report.conflicts:
        lines.append("conflicts wait in the queue: em-circuits labels conflicts")
    shown = report.left_out[:_LEFT_OUT_SHOWN]
    lines += [f"left out: {one.where}: {one.why}" for one in shown]
    if len(report.left_out) > len(shown):
        lines.append(f"left out: and {len(report.left_out) - len(shown)} more (--json names them)")
    return lines
