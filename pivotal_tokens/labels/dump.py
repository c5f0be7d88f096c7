"""Dump of a whole store to one file, and its import into another store.

One record per thing: ``kind`` (pair, review_config, prompt, next_tokens, judgement, verdict, label,
review), the keys it is found by, and its JSON as ``value``; as JSONL, or as Parquet with `value` as
a text. ``review`` is what people did with a prompt (`store.histories.of`): a people's verdict is
not copied but follows again from it and from the labels. Graphs are files of their own and stay
where they are, and leases with those who hold them. ``rejection`` of older files is read.

    write_dump(store, Path("all.jsonl"))
    read_dump(store, Path("all.jsonl"))       # an ImportReport
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pivotal_tokens.errors import RequestError
from pivotal_tokens.labels.formats import format_of, read_records, write_records
from pivotal_tokens.labels.intake import ImportReport, Intake
from pivotal_tokens.schema import (
    HUMAN,
    Judgement,
    LabelEvent,
    NextTokenPair,
    Prompt,
    ReviewConfig,
    Verdict,
)
from pivotal_tokens.store import Store
from pivotal_tokens.store.history import ReviewHistory
from pivotal_tokens.table_files import BadRow

DUMP_FIELDS = ("kind", "prompt_id", "pair", "judge", "value")
_TOGETHER = 200  # records in one transaction; others wait with their writes meanwhile


def write_dump(store: Store, path: Path) -> int:
    """Write everything to a .jsonl or .parquet file, and return the number of records."""
    kind = _format(path)
    records = list(_records(store))
    if kind == "parquet":
        for record in records:
            record["value"] = json.dumps(record["value"], ensure_ascii=False, allow_nan=False)
    write_records(path, records, DUMP_FIELDS)
    return len(records)


def read_dump(store: Store, path: Path) -> ImportReport:
    """Take such a file in: what is here stays, labels follow the rules of `intake`, and a record
    that cannot be used is left out and named.

    Raises:
        RequestError: If it is no such file.
    """
    _format(path)
    intake = Intake(store, path.name)
    records = read_records(path)
    while several := list(islice(records, _TOGETHER)):
        with store.batch():  # one write to the disk for all of them
            for where, record in several:
                if isinstance(record, BadRow):
                    intake.leave_out(where, record.why)
                    continue
                if set(record) != set(DUMP_FIELDS):
                    raise RequestError(f"{where}: not a record of `em-circuits export`")
                with intake.usable(where, str(record["kind"])):
                    _take(store, intake, where, record)
    return intake.finish()


def _take(store: Store, intake: Intake, where: str, record: Mapping[str, Any]) -> None:
    prompt_id, pair, value = record["prompt_id"], record["pair"], record["value"]
    value = json.loads(value) if isinstance(value, str) else value
    match record["kind"]:
        case "pair":
            intake.pair(pair, value)
        case "review_config":
            store.assignments.take_config(ReviewConfig.model_validate(value))
        case "prompt":
            intake.prompt(Prompt.model_validate(value))
        case "next_tokens":
            intake.next_tokens(prompt_id, pair, NextTokenPair.model_validate(value))
        case "judgement":
            intake.judgement(pair, Judgement.model_validate(value))
        case "verdict":
            intake.verdict(prompt_id, pair, record["judge"], Verdict.model_validate(value))
        case "label":
            intake.label(where, LabelEvent.model_validate(value).model_dump(mode="json"))
        case "review":
            intake.history(ReviewHistory.model_validate(value))
        case "rejection":
            store.assignments.import_rejection(prompt_id, value["author"], value["reason"])
        case unknown:
            raise KeyError(unknown)


def _format(path: Path) -> str:
    kind = format_of(path)
    if kind == "csv":
        raise RequestError(f"{path}: a whole store is .jsonl or .parquet; CSV is for labels export")
    return kind


def _records(store: Store) -> Iterator[dict[str, Any]]:
    store.chains.require_whole()
    for pair, about in store.results.pairs().items():
        yield _record("pair", about, pair=pair)
    yield _record("review_config", store.assignments.config())
    for prompt in store.prompts.all():
        yield _record("prompt", prompt, prompt.prompt_id)
        view = store.queries.attempt(prompt.prompt_id)
        for one in view.pairs:
            here = {"prompt_id": prompt.prompt_id, "pair": one.pair}
            if one.next_tokens is not None:
                yield _record("next_tokens", one.next_tokens, **here)
            for judgement in one.judgements:
                yield _record("judgement", judgement, judge=judgement.judge, **here)
            for judge, verdict in one.verdicts.items():
                if judge != HUMAN:
                    yield _record("verdict", verdict, judge=judge, **here)
        for event in view.label_events:
            yield _record("label", event, prompt.prompt_id)
        history = store.histories.of(prompt.prompt_id)
        if not history.empty:
            yield _record("review", history, prompt.prompt_id)


def _record(
    kind: str,
    value: BaseModel | Mapping[str, str],
    prompt_id: str | None = None,
    pair: str | None = None,
    judge: str | None = None,
) -> dict[str, Any]:
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return {"kind": kind, "prompt_id": prompt_id, "pair": pair, "judge": judge, "value": plain}
