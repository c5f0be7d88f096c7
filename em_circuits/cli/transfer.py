"""``em-circuits export`` and ``import``: a whole store, out and in."""

from __future__ import annotations

from pathlib import Path

import click

from em_circuits.cli.labels import describe_import, keep_report
from em_circuits.cli.output import emit, json_option
from em_circuits.cli.session import Session, pass_session


@click.command(epilog="Example: em-circuits export all.jsonl")
@click.argument("out", type=click.Path(path_type=Path))
@json_option
@pass_session
def export(session: Session, out: Path, as_json: bool) -> None:
    """Prompts, next tokens, judgements, verdicts, labels and reviews, to one file or a directory.

    OUT is a .jsonl or .parquet file; any other name is a directory for the predecessor's JSON tree.
    """
    from pivotal_tokens.artefacts import write_provenance
    from pivotal_tokens.labels.dump import write_dump
    from pivotal_tokens.labels.tree import write_tree

    with session.open_store() as store:
        number = write_dump(store, out) if out.suffix else write_tree(store, out)
    if out.suffix:
        inputs = {"store": session.store_name}
        write_provenance(out, inputs=inputs, config={"command": "export"})
    what = "records" if out.suffix else "files"
    if as_json:
        emit({"written": str(out), what: number})
    else:
        click.echo(f"{number} {what} to {out}")


@click.command(name="import", epilog="Example: em-circuits import all.jsonl")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--author",
    default="predecessor",
    show_default=True,
    help="Whose labels those of a tree are, where it does not say.",
)
@json_option
@pass_session
def import_(session: Session, file: Path, author: str, as_json: bool) -> None:
    """Take an export in; what is here stays, and contradicting labels are queued.

    Items finished, rejected or put off there are so here, where nobody has begun with them.

    Exit status 1 if something in FILE could not be used; the rest is kept.
    """
    from pivotal_tokens.errors import RequestError, WorkFailed
    from pivotal_tokens.labels.dump import read_dump
    from pivotal_tokens.labels.tree import read_tree

    if not file.exists():
        raise RequestError(f"no file or directory {file}")
    with session.open_store(create=True) as store:
        report = read_tree(store, file, author=author) if file.is_dir() else read_dump(store, file)
    keep_report(session, file, report)
    if as_json:
        emit(report.model_dump(mode="json"))
    else:
        click.echo("\n".join(describe_import(report)))
    if report.left_out:
        raise WorkFailed(f"{len(report.left_out)} of {report.records} records were left out")
