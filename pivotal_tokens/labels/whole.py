"""How does everything in a store leave it as one file, and come into another?

One record per thing: ``kind`` (pair, review_config, prompt, next_tokens, judgement, verdict, label,
review), the keys it is found by, and its JSON as ``value``; as JSONL, or as Parquet with `value` as
a text. ``review`` is what people did with a prompt (`store.histories.of`): a people's verdict is
not copied but follows again from it and from the labels. Graphs are files of their own and stay
where they are, and leases with those who hold them. ``rejection`` of older files is read.

    write_store(store, Path("all.jsonl"))
    read_store(store, Path("all.jsonl"))       # an ImportReport
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pivotal_tokens.errors import RequestError
from pivotal_tokens.labels.formats import format_of, read_records, write_records
from pivotal_tokens.labels.importing import ImportReport, import_labels
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

WHOLE_FIELDS = ("kind", "prompt_id", "pair", "judge", "value")
_TOGETHER = 200  # records in one transaction; others wait with their writes meanwhile


def write_store(store: Store, path: Path) -> int:
    """Write everything to a .jsonl or .parquet file, and return the number of records."""
    kind = _format(path)
    records = list(_records(store))
    if kind == "parquet":
        for record in records:
            record["value"] = json.dumps(record["value"], ensure_ascii=False, allow_nan=False)
    write_records(path, records, WHOLE_FIELDS)
    return len(records)


def read_store(store: Store, path: Path) -> ImportReport:
    """Take such a file in: what is here stays, labels follow the rules of `import_labels`.

    Raises:
        RequestError: If it is no such file.
    """
    _format(path)
    before = len(store.prompts.all())
    found = _Found([], {}, [])
    records = read_records(path)
    while several := list(islice(records, _TOGETHER)):
        with store.batch():  # one write to the disk for all of them
            for where, record in several:
                _take(store, where, record, found)
    report = import_labels(store, found.labels, source=path.name, histories=found.histories)
    return report.model_copy(update={"prompts": len(store.prompts.all()) - before})


@dataclass(frozen=True)
class _Found:
    """What is taken in at the end, when everything it speaks of is here."""

    labels: list[tuple[str, dict[str, Any]]]
    texts: dict[str, str]  # prompt id -> text
    histories: list[ReviewHistory]


def _take(store: Store, where: str, record: Mapping[str, Any], found: _Found) -> None:
    if set(record) != set(WHOLE_FIELDS):
        raise RequestError(f"{where}: not a record of `em-circuits export`")
    value = record["value"]
    value = json.loads(value) if isinstance(value, str) else value
    try:
        if record["kind"] == "label":
            event = LabelEvent.model_validate(value).model_dump(mode="json")
            found.labels.append((where, event | {"prompt_text": found.texts[event["prompt_id"]]}))
        elif record["kind"] == "prompt":
            prompt = Prompt.model_validate(value)
            found.texts[prompt.prompt_id] = prompt.text
            store.prompts.add(prompt)
        elif record["kind"] == "review":
            found.histories.append(ReviewHistory.model_validate(value))
        else:
            _keep(store, record, value)
    except (ValidationError, KeyError, TypeError) as error:
        raise RequestError(f"{where}: not a usable {record['kind']}: {error}") from error


def _format(path: Path) -> str:
    kind = format_of(path)
    if kind == "csv":
        raise RequestError(f"{path}: a whole store is .jsonl or .parquet; CSV is for labels export")
    return kind


def _records(store: Store) -> Iterator[dict[str, Any]]:
    for pair, about in store.results.pairs().items():
        yield _record("pair", about, pair=pair)
    yield _record("review_config", store.assignments.config().model_dump(mode="json"))
    for prompt in store.prompts.all():
        yield _record("prompt", prompt.model_dump(mode="json"), prompt.prompt_id)
        view = store.queries.attempt(prompt.prompt_id)
        for one in view.pairs:
            here = {"prompt_id": prompt.prompt_id, "pair": one.pair}
            if one.next_tokens is not None:
                yield _record("next_tokens", one.next_tokens.model_dump(mode="json"), **here)
            for judgement in one.judgements:
                value = judgement.model_dump(mode="json")
                yield _record("judgement", value, judge=judgement.judge, **here)
            for judge, verdict in one.verdicts.items():
                if judge != HUMAN:
                    yield _record("verdict", verdict.model_dump(mode="json"), judge=judge, **here)
        for event in view.label_events:
            yield _record("label", event.model_dump(mode="json"), prompt.prompt_id)
        history = store.histories.of(prompt.prompt_id)
        if not history.empty:
            yield _record("review", history.model_dump(mode="json"), prompt.prompt_id)


def _record(
    kind: str,
    value: Any,
    prompt_id: str | None = None,
    pair: str | None = None,
    judge: str | None = None,
) -> dict[str, Any]:
    return {"kind": kind, "prompt_id": prompt_id, "pair": pair, "judge": judge, "value": value}


def _keep(store: Store, record: Mapping[str, Any], value: Any) -> None:
    prompt_id, pair, judge = record["prompt_id"], record["pair"], record["judge"]
    match record["kind"]:
        case "pair":
            if pair not in store.results.pairs():
                store.results.put_pair(pair, value)
        case "review_config":
            store.assignments.take_config(ReviewConfig.model_validate(value))
        case "next_tokens":
            if store.results.next_tokens(prompt_id, pair) is None:
                lists = NextTokenPair.model_validate(value)
                store.results.put_next_tokens(prompt_id, pair, lists.base, lists.merged)
        case "judgement":
            if store.results.judgement(prompt_id, pair, judge) is None:
                store.results.put_judgement(pair, Judgement.model_validate(value))
        case "verdict":
            if store.results.verdict(prompt_id, pair, judge) is None:
                store.results.put_verdict(prompt_id, pair, judge, Verdict.model_validate(value))
        case "rejection":
            store.assignments.import_rejection(prompt_id, value["author"], value["reason"])
        case _:
            raise KeyError(record["kind"])
