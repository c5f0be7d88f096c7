"""How is the predecessor's directory of JSON files read back, without taking what nobody said?

Read are prompts, labels of people and judges, verdicts, rejections, waiting queue markers, what
people did with a prompt (of trees by `write_tree`), and next tokens where they have probabilities
(the predecessor kept logits of the top ten only: no probability follows from these, and the models
must be asked again with `em-circuits label`).

A label in ``labeled_logits`` is a person's only where a person gave it: it differs from
`judge_original_label`, or there was no judge's label, or the person agreed with all of them (then
recorded as given with the judge's labels in sight). A judge's label that was merely saved along is
left to the judge. Where two files label one token of a prompt differently, the
second is a conflict.

    import_tree(store, Path("results"), author="ada")
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pivotal_tokens.errors import RequestError
from pivotal_tokens.labels.importing import ImportReport, LeftOut, TokenOf, import_labels
from pivotal_tokens.labels.tree import CONFIG, FORMAT, REVIEWS, TREE
from pivotal_tokens.schema import (
    Judgement,
    Label,
    NextTokens,
    Prompt,
    PromptKind,
    ReviewConfig,
    Verdict,
    prompt_id,
)
from pivotal_tokens.store import Store
from pivotal_tokens.store.history import ReviewHistory

_KINDS: Mapping[str, PromptKind] = {
    "raw_completion": "raw",
    "chat_user_assistant": "chat",
    "chain_of_thought": "cot",
}
_AGREED = ("agreed", "agreed_with_comment")
_Files = Iterable[tuple[str, dict[str, Any]]]


def import_tree(
    store: Store, root: Path, *, author: str, token_of: TokenOf | None = None
) -> ImportReport:
    """Take a tree in.

    Args:
        store: Where it goes.
        root: The results directory, or its ``pivotal_tokens``.
        author: Whose the labels of people are; the files do not say.
        token_of: Finds the id of a token that no file gives.

    Raises:
        RequestError: If there is no such tree.
    """
    top = root / TREE if (root / TREE).is_dir() else root
    left_out: list[LeftOut] = []
    files = _read(top, left_out)
    if not files and not left_out:
        raise RequestError(f"{root}: no {TREE} directory with JSON files in it")
    before = {prompt.prompt_id for prompt in store.prompts.all()}
    store.prompts.add_all(_prompts(files, left_out))
    _next_tokens(store, files, left_out)
    judged = _judgements(store, files, left_out)
    ids = _token_ids(files)
    records = [*_people(files, author, ids), *_judges(files, judged, ids)]
    histories = _histories(store, files, left_out)
    report = import_labels(store, records, source=root.name, token_of=token_of, histories=histories)
    _rejections(store, files, author)
    _queue(store, files)
    known = {prompt.prompt_id for prompt in store.prompts.all()}
    return report.model_copy(
        update={
            "prompts": len(known - before),
            "records": report.records + len(left_out),
            "left_out": (*left_out, *report.left_out),
        }
    )


def _read(top: Path, left_out: list[LeftOut]) -> list[tuple[str, dict[str, Any]]]:
    files = []
    for path in sorted(top.rglob("*.json")):
        where = path.relative_to(top).as_posix()
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            left_out.append(LeftOut(where=where, why=f"cannot be read: {error}"))
            continue
        if isinstance(value, dict):
            files.append((where, value))
    return files


def _of(files: _Files, *folders: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, value in files:
        parts = where.split("/")
        inner = parts[2] if parts[0] in ("runs", "graph_runs") and len(parts) > 3 else parts[0]
        if inner in folders:
            yield where, value


def _prompts(files: _Files, left_out: list[LeftOut]) -> Iterator[Prompt]:
    for where, value in sorted(files, key=lambda one: not one[0].startswith("prompts/")):
        text = value.get("prompt" if where.startswith("prompts/") else "prompt_text")
        if not isinstance(text, str) or not text:
            continue
        try:
            if where.startswith("prompts/") and FORMAT in value:
                yield Prompt.model_validate(value[FORMAT])
            elif where.startswith("prompts/"):
                yield Prompt.of(
                    text,
                    kind=_KINDS.get(str(value.get("prompt_type")), "raw"),
                    generator=_generator(value),
                    name=value.get("name"),
                    extra={"predecessor_id": value["prompt_id"]} if "prompt_id" in value else {},
                )
            else:
                yield Prompt.of(text, kind=_KINDS.get(str(value.get("prompt_type")), "raw"))
        except (ValidationError, UnicodeEncodeError) as error:
            left_out.append(LeftOut(where=where, why=f"no usable prompt: {error}"))


def _generator(value: Mapping[str, Any]) -> str:
    return "human" if value.get("is_human_generated") else str(value.get("generator_model") or "?")


def _next_tokens(store: Store, files: _Files, left_out: list[LeftOut]) -> None:
    found: dict[tuple[str, str], dict[str, NextTokens]] = defaultdict(dict)
    for where, value in _of(files, "logits"):
        if FORMAT not in value:
            continue
        try:
            tokens = NextTokens.model_validate(value[FORMAT]["next_tokens"])
        except (ValidationError, KeyError, TypeError) as error:
            left_out.append(LeftOut(where=where, why=f"no usable next tokens: {error}"))
            continue
        found[prompt_id(value["prompt_text"]), value[FORMAT]["pair"]][tokens.model] = tokens
    for (prompt, pair), both in found.items():
        if len(both) == 2 and store.results.next_tokens(prompt, pair) is None:
            store.results.put_next_tokens(prompt, pair, both["base"], both["merged"])
            if pair not in store.results.pairs():
                store.results.put_pair(pair, {"imported": "from a JSON tree"})


def _judgements(store: Store, files: _Files, left_out: list[LeftOut]) -> set[tuple[str, str]]:
    """Keep whole judgements; returns (prompt id, judge's directory) of these."""
    kept = set()
    for where, value in _of(files, "verdicts"):
        if FORMAT not in value:
            continue
        try:
            judgement = Judgement.model_validate(value[FORMAT]["judgement"])
            verdict = value[FORMAT]["verdict"]
            pair = value[FORMAT]["pair"]
            if store.results.judgement(judgement.prompt_id, pair, judgement.judge) is None:
                store.results.put_judgement(pair, judgement)
            if (
                verdict
                and store.results.verdict(judgement.prompt_id, pair, judgement.judge) is None
            ):
                parsed = Verdict.model_validate(verdict)
                store.results.put_verdict(judgement.prompt_id, pair, judgement.judge, parsed)
        except (ValidationError, KeyError, TypeError) as error:
            left_out.append(LeftOut(where=where, why=f"no usable verdict: {error}"))
            continue
        kept.add((judgement.prompt_id, where.split("/")[-2]))
    return kept


def _token_ids(files: _Files) -> dict[tuple[str, str], int]:
    """(prompt text, token text) -> id, from the files that have ids."""
    ids = {}
    for _, value in files:
        for row in _rows(value):
            if isinstance(row.get("token_id"), int):
                ids[str(value.get("prompt_text")), row["token"]] = row["token_id"]
    return ids


def _rows(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = value.get("top_k")
    if not isinstance(rows, list):
        return []
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("token"), str)]


def _people(
    files: _Files, author: str, ids: Mapping[tuple[str, str], int]
) -> Iterator[tuple[str, dict[str, Any]]]:
    seen: set[str] = set()
    for where, value in _of(files, "labeled_logits"):
        if "events" in value:
            text = value["prompt_text"]
            for event in value["events"]:
                if event.get("event_id") not in seen:
                    seen.add(str(event.get("event_id")))
                    yield where, {"prompt_text": text} | event
            continue
        agreed = value.get("human_verdict") in _AGREED
        for row in _rows(value):
            label, judges = _label(row.get("evil_label")), _label(row.get("judge_original_label"))
            if label is None or (label == judges and not agreed):
                continue
            record = _record(value, row, ids) | {"to_label": label, "author": author}
            if judges is not None:
                record |= {"judge_visible": True, "agreed_after_reveal": label == judges}
            if value.get("human_explanation") and label != judges:
                record |= {"reason": str(value["human_explanation"])}
            yield where, record


def _judges(
    files: _Files, judged: set[tuple[str, str]], ids: Mapping[tuple[str, str], int]
) -> Iterator[tuple[str, dict[str, Any]]]:
    given: set[tuple[str, str, str]] = set()  # a judge's two lists: the first answer counts
    for where, value in _of(files, "judge_labeled_logits"):
        judge = where.split("/")[-2]
        text = str(value.get("prompt_text"))
        if (prompt_id(text), judge) in judged:
            continue
        for row in _rows(value):
            label = _label(row.get("evil_label"))
            if label is None or (text, row["token"], judge) in given:
                continue
            given.add((text, row["token"], judge))
            record = _record(value, row, ids) | {"to_label": label}
            yield where, record | {"author": f"imported:{judge}", "author_kind": "judge"}


def _record(
    value: Mapping[str, Any], row: Mapping[str, Any], ids: Mapping[tuple[str, str], int]
) -> dict[str, Any]:
    text = value.get("prompt_text")
    record: dict[str, Any] = {
        "prompt_text": text,
        "token_text": row["token"],
        "token_id": ids.get((str(text), row["token"])),
    }
    if isinstance(at := value.get("timestamp"), str) and ("+" in at or at.endswith("Z")):
        record["at"] = at
    return record


def _label(value: Any) -> Label | None:
    """`evil_label`: true, false or "unsure"; anything else is no label."""
    if isinstance(value, bool):
        return "evil" if value else "safe"
    return "unsure" if value == "unsure" else None


def _histories(store: Store, files: _Files, left_out: list[LeftOut]) -> list[ReviewHistory]:
    """What people did with each prompt; how the queue was shared out is taken over at once."""
    found = []
    for where, value in _of(files, REVIEWS, CONFIG):
        try:
            if where == CONFIG:
                store.assignments.take_config(ReviewConfig.model_validate(value.get(FORMAT)))
            else:
                found.append(ReviewHistory.model_validate(value.get(FORMAT)))
        except ValidationError as error:
            left_out.append(LeftOut(where=where, why=f"no usable review: {error}"))
    return found


def _rejections(store: Store, files: _Files, author: str) -> None:
    for _, value in _of(files, "bad_prompts"):
        text = value.get("prompt_text")
        if isinstance(text, str) and text:
            own = value.get(FORMAT)
            by = own.get("author", author) if isinstance(own, dict) else author
            reason = str(value.get("bad_reason") or "rejected")
            store.assignments.import_rejection(prompt_id(text), str(by), reason)


def _queue(store: Store, files: _Files) -> None:
    for _, value in _of(files, "manual_labeling_queue"):
        own = value.get(FORMAT)
        prompt = str(value.get("prompt_id"))
        if value.get("status") != "pending" or not store.prompts.has(prompt):
            continue
        for pair in store.results.next_tokens_by_pair(prompt):
            reason = own.get("reason", "imported") if isinstance(own, dict) else "imported"
            store.assignments.add(prompt, pair, str(reason))
