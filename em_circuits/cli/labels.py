"""``em-circuits labels``, ``export`` and ``import``: labels and whole stores, in and out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click

from em_circuits.cli.output import (
    WIDTH,
    Printed,
    emit,
    name_left_out,
    one_line,
    prints,
    prompt_line,
    say,
    table,
    table_of,
)
from em_circuits.cli.session import Session, pass_session
from pivotal_tokens.agreement import Estimate
from pivotal_tokens.artefacts import changed_since_written, provenance_path, write_provenance
from pivotal_tokens.errors import RequestError, WorkFailed
from pivotal_tokens.labels import (
    FIELDS,
    AgreementReport,
    Divergence,
    ImportReport,
    import_labels,
    label_agreement,
    label_records,
    plots,
    read_records,
    write_records,
)
from pivotal_tokens.labels import divergence as diverge
from pivotal_tokens.labels.agreement import RaterComparison
from pivotal_tokens.labels.divergence import DivergenceRow, LabelsOf
from pivotal_tokens.labels.dump import read_dump, write_dump
from pivotal_tokens.labels.formats import csv_text
from pivotal_tokens.labels.tree import read_tree, write_tree
from pivotal_tokens.schema import PromptLabels
from pivotal_tokens.store.labels import LabelConflict

OUT = click.Path(path_type=Path)


class WrittenRecords(Printed):
    """Where an export went, as one file."""

    written: str
    records: int


class WrittenTree(Printed):
    """Where an export went, as a directory of JSON files."""

    written: str
    files: int


class WrittenPlots(plots.LabelCounts):
    """What was counted, and the files with the plots."""

    written: tuple[str, ...]


@contextmanager
def _collected_seldom() -> Iterator[None]:
    """Rows have no cycles; looking for some takes a third of the time of a million."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


@click.group()
@click.pass_context
def labels(context: click.Context) -> None:
    """Show, export, import and compare labels."""
    context.with_resource(_collected_seldom())


@labels.command("export", epilog="Example: em-circuits labels export labels.csv")
@click.argument("out", required=False, type=OUT)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["jsonl", "csv", "parquet", "tree"]),
    help="[default: by the ending of OUT; JSONL without OUT]",
)
@prints(WrittenRecords | WrittenTree)
@pass_session
def export_labels(session: Session, out: Path | None, kind: str | None, as_json: bool) -> None:
    """Every label event with its prompt and token, to OUT or standard output.

    OUT is a .jsonl, .csv or .parquet file, or with --format tree a directory of JSON files.
    """
    if out is None and kind in ("parquet", "tree"):
        raise RequestError(f"--format {kind} needs a place: em-circuits labels export OUT")
    with session.open_store() as store:
        if kind == "tree" and out is not None:
            _exported(WrittenTree(written=str(out), files=write_tree(store, out)), as_json)
            return
        records = list(label_records(store))
    if out is None and kind == "csv":
        click.echo(csv_text(records, FIELDS), nl=False)
    elif out is None:
        emit(records)
    else:
        write_records(out, records, FIELDS, format=kind)
        config = {"command": "labels export", "format": kind}
        write_provenance(
            out, inputs={"store": session.store_name}, config=config, records=len(records)
        )
        _exported(WrittenRecords(written=str(out), records=len(records)), as_json)


@labels.command("import", epilog="Example: em-circuits labels import labels.csv")
@click.argument("file", type=OUT)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["jsonl", "csv", "parquet", "tree"]),
    help="[default: by the ending; a directory is a tree]",
)
@click.option("--author", help="Whose labels these are where the file does not say.")
@click.option("--tokenizer", metavar="DIR", help="Finds ids of tokens that have only a text.")
@prints(ImportReport)
@pass_session
def import_labels_(
    session: Session,
    file: Path,
    kind: str | None,
    author: str | None,
    tokenizer: str | None,
    as_json: bool,
) -> None:
    """Import labels: duplicates are dropped, contradictions are queued, nothing is replaced.

    Exit status 1 if something in FILE could not be used; the rest is imported.
    """
    token_of = _token_finder(tokenizer)
    if changed_since_written(file):  # by a person, whose work it is, or by the disk
        say(f"note: {file} has changed since it was exported", err=True)
    with session.open_store(create=file.exists()) as store:
        if kind == "tree" or (kind is None and file.is_dir()):
            report = read_tree(store, file, author=author or "predecessor", token_of=token_of)
        else:
            records = list(read_records(file, format=kind))
            report = import_labels(
                store, records, source=file.name, author=author, token_of=token_of
            )
    _imported(session, file, report, as_json)


@click.command("export", epilog="Example: em-circuits export all.jsonl")
@click.argument("out", type=OUT)
@prints(WrittenRecords | WrittenTree)
@pass_session
def export(session: Session, out: Path, as_json: bool) -> None:
    """Prompts, next tokens, judgements, verdicts, labels and reviews, to one file or a directory.

    OUT is a .jsonl or .parquet file; any other name is a directory for the predecessor's JSON tree.
    """
    with session.open_store() as store:
        if not out.suffix:
            _exported(WrittenTree(written=str(out), files=write_tree(store, out)), as_json)
            return
        number = write_dump(store, out)
    write_provenance(out, inputs={"store": session.store_name}, config={"command": "export"})
    _exported(WrittenRecords(written=str(out), records=number), as_json)


@click.command("import", epilog="Example: em-circuits import all.jsonl")
@click.argument("file", type=OUT)
@click.option(
    "--author",
    default="predecessor",
    show_default=True,
    help="Whose labels those of a tree are, where it does not say.",
)
@prints(ImportReport)
@pass_session
def import_(session: Session, file: Path, author: str, as_json: bool) -> None:
    """Import an export; what is here stays, and contradicting labels are queued.

    Items finished, rejected or put off there are so here, unless somebody has begun with them.

    Exit status 1 if something in FILE could not be used; the rest is imported.
    """
    if not file.exists():
        raise RequestError(f"no file or directory {file}")
    if changed_since_written(file):
        raise RequestError(
            f"{file} has changed since it was exported: take another copy; if the change is meant, "
            f"remove {provenance_path(file).name}"
        )
    with session.open_store(create=True) as store:
        report = read_tree(store, file, author=author) if file.is_dir() else read_dump(store, file)
    _imported(session, file, report, as_json)


@labels.command(epilog="Example: em-circuits labels show 44a71b")
@click.argument("prompt")
@prints(PromptLabels)
@pass_session
def show(session: Session, prompt: str, as_json: bool) -> None:
    """The labels in force for one prompt: a person's where there is one, else the judge's."""
    with session.open_store() as store:
        found = store.labels.of(store.prompts.get(prompt).prompt_id)
    columns = ("token_id as token", "label", "source as from", "author")
    emit(found, as_json, lambda found: [table_of(found.labels, columns, none="no labels")])


@labels.command(epilog="Example: em-circuits labels conflicts --json")
@prints(LabelConflict, lines=True)
@pass_session
def conflicts(session: Session, as_json: bool) -> None:
    """Imported labels that contradict a person's and wait for a decision in the queue."""
    with session.open_store() as store:
        found = store.labels.conflicts()
    columns = (
        "event.prompt_id as prompt",
        "event.token_id as token",
        "event.to_label as imported",
        "event.author",
        "against as here",
        "by",
    )
    emit(found, as_json, columns, none="no conflicts")


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
@prints(Divergence)
@pass_session
def divergence(
    session: Session, which: LabelsOf, judge: str | None, only_divergent: bool, as_json: bool
) -> None:
    """Prompts whose verdict is injection or promotion, on complete labels of both lists.

    Beside it stands the strict count: an evil token in merged's list and none in base's.
    """
    with session.open_store() as store:
        found = diverge(store, labels=which, judge=judge)
    if only_divergent:
        found = found.model_copy(update={"rows": found.divergent})
    emit(found, as_json, describe_divergence)


@labels.command(epilog="Example: em-circuits labels agreement")
@click.option("--resamples", default=2000, show_default=True, type=click.IntRange(min=0))
@prints(AgreementReport)
@pass_session
def agreement(session: Session, resamples: int, as_json: bool) -> None:
    """Percent, kappa, AC1 and alpha between people, and between people and judges."""
    with session.open_store() as store:
        found = label_agreement(store, resamples=resamples, seed=session.seed)
    emit(found, as_json, describe_agreement)


@labels.command("plots", epilog="Example: em-circuits labels plots verdicts.html --png v.png")
@click.argument("out", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--png", type=click.Path(dir_okay=False, path_type=Path), help="A PNG as well.")
@prints(WrittenPlots)
@pass_session
def draw(session: Session, out: Path | None, png: Path | None, as_json: bool) -> None:
    """Verdicts and labels overall, by model and by judge, as one HTML file.

    OUT is ROOT/results/verdicts.html unless given.
    """
    with session.open_store() as store:
        counts = plots.tally(store)
    if counts.empty:
        raise RequestError("no verdicts and no labels yet: run `em-circuits label` first")
    page = out or session.root / "results" / "verdicts.html"
    plots.write_label_page(counts, page)
    if png is not None:
        plots.write_png(counts, png)
    written = [path for path in (page, png) if path is not None]
    for path in written:
        write_provenance(
            path,
            inputs={"store": session.store_name},
            config={"command": "labels plots"},
            counts=counts.model_dump(),
        )
    result = WrittenPlots(**counts.model_dump(), written=tuple(map(str, written)))
    emit(
        result,
        as_json,
        lambda found: [*plots.summary(found), *(f"wrote {path}" for path in found.written)],
    )


def _exported(result: WrittenRecords | WrittenTree, as_json: bool) -> None:
    if isinstance(result, WrittenTree):
        emit(result, as_json, lambda found: [f"{found.files} files under {found.written}"])
    else:
        emit(result, as_json, lambda found: [f"{found.records} records to {found.written}"])


def _imported(session: Session, file: Path, report: ImportReport, as_json: bool) -> None:
    """Store the report beside other results, print it, and fail where something was left out."""
    kept = session.keep_import(file, report.model_dump(mode="json"))
    emit(report, as_json, partial(describe_import, kept=kept))
    if report.left_out:
        raise WorkFailed(f"{len(report.left_out)} of {report.records} records were left out")


def _token_finder(tokenizer: str | None) -> Callable[[str], int | None] | None:
    """Text -> id of the one token that is exactly this text."""
    if tokenizer is None:
        return None
    from transformers import AutoTokenizer

    from em_circuits.models.foreign import foreign_errors
    from em_circuits.models.text import first_token

    with foreign_errors(f"--tokenizer {tokenizer}: no tokenizer there"):
        loaded = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)

    def find(text: str) -> int | None:
        if not text:
            return None
        token, whole = first_token(loaded, text)
        return token if whole else None

    return find


def describe_import(report: ImportReport, kept: Path) -> Iterator[str]:
    """What became of an import, in a few lines; `kept` is the file that says it all."""
    yield (
        f"{report.records} records read: {report.added} added, {report.duplicates} known, "
        f"{report.conflicts} in conflict, {len(report.left_out)} left out; "
        f"{report.prompts} new prompts"
    )
    if report.reviews or report.reviews_kept:
        yield (
            f"reviews: {report.reviews} assignments answered as there, "
            f"{report.reviews_kept} left as they are here"
        )
    if report.conflicts:
        yield "conflicts wait in the queue: em-circuits labels conflicts"
    yield from name_left_out(report.left_out, kept)


def describe_divergence(found: Divergence) -> Iterator[str]:
    """Status of every prompt under base and each fine-tuned model, masses and margins, totals."""
    totals, names = found.totals, plots.pair_names(found.pairs)
    for pair in dict.fromkeys(row.pair for row in found.rows):
        yield f"base x {names.get(pair, pair) or 'merged'}"
        header = ("prompt", "base", "merged", "", "evil mass", "margin")
        rows = [row for row in found.rows if row.pair == pair]
        # The text has the room that columns without a figure do not take.
        columns = [
            column
            for column in zip(header, *map(_cells, rows), strict=True)
            if set(column[1:]) - {"-", "- -"}
        ]
        room = max(10, WIDTH - sum(max(map(len, column)) + 2 for column in columns))
        columns.append(("text", *(prompt_line(row.text, room) for row in rows)))
        shown, *lines = zip(*columns, strict=True)
        yield table(shown, lines) + "\n"
    yield (
        f"{totals['divergent']} divergent of {totals['complete']} complete "
        f"({found.labels} labels), {totals['strict']} strictly"
    )
    yield (
        f"{totals['evil_in_both']} evil in both, {totals['evil_in_base_only']} in base only, "
        f"{totals['evil_in_neither']} in neither"
    )
    yield (
        f"{totals['unsure_cases']} would change with unsure tokens evil; "
        f"{totals['incomplete']} incomplete, {totals['missing']} missing, "
        f"{totals['rejected']} rejected"
    )
    if found.labels == "human" and totals["incomplete"]:
        yield "no person labelled these whole: --labels judge reads what judges say instead"


def _cells(row: DivergenceRow) -> tuple[str, ...]:
    both = None if row.divergent is None else row.evil_mass  # some labels give no mass
    mass = f"{both.base:.3f} {both.merged:.3f}" if both else "-"
    margins = [row.base.margin, row.merged.margin]
    margin = " ".join("-" if one is None else f"{one:+.2f}" for one in margins)
    mark = {True: "DIV", False: "no", None: "-"}[row.divergent] + "?" * row.unsure
    mark += " strict" if row.strict else ""
    return (
        row.prompt_id,
        str(row.base),
        str(row.merged),
        mark,
        mass,
        margin,
    )


def describe_agreement(found: AgreementReport) -> Iterator[str]:
    """A block per comparison."""
    blocks = {
        "people": found.people,
        "people and judges": found.judges,
        "asked twice": found.steadiness,
    }
    for title, several in blocks.items():
        if several:
            yield title
        for one in several:
            yield from describe_comparison(one)
    if not any(blocks.values()):
        yield "nothing to compare: it takes two who labelled every token of the same prompts blind"
    if found.left_out:
        parts = ", ".join(f"{author} {number}" for author, number in found.left_out.items())
        yield f"left out, labelled in part or not blind (prompts): {parts}"


def describe_comparison(one: RaterComparison) -> Iterator[str]:
    """Coefficients of some raters with their intervals, and the table of two."""
    found = one.agreement
    yield f"  {' / '.join(one_line(name, 34) for name in one.raters)}"
    yield f"    {found.items} tokens of {found.groups} prompts"
    for name in ("percent", "kappa", "AC1", "alpha"):
        yield f"    {name:<8}{_estimate(getattr(found, name.lower()))}"


def _estimate(one: Estimate) -> str:
    if one.value is None:
        return "not defined: only one label was given"
    if one.low is None or one.high is None:
        return f"{one.value:6.3f}"
    return f"{one.value:6.3f}  [{one.low:.3f}, {one.high:.3f}]"
