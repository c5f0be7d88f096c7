"""The predecessor's directory tree of JSON files, written from a store and read back.

Under ``pivotal_tokens/``, one file per prompt and kind, in its names and fields:

    prompts/{generator}/{id}.json               the prompt
    runs/{model}/logits/{id}.json               a model's next tokens
    runs/{model}/verdicts/{judge}/{id}.json     a judge's verdict
    judge_labeled_logits/{model}/{judge}/{id}.json
    labeled_logits/{model}/{id}.json            with people's labels
    human_disagreements|human_agreements/{model}/{id}.json
    human_explanations/{id}.json   bad_prompts/{id}.json   manual_labeling_queue/{id}.json
    reviews/{id}.json, review_config.json       what people did, which the predecessor had not

`evil_label` is true for evil, false for safe, "unsure", and absent without a label. Beyond the
predecessor's fields there are ids, probabilities and ranks, and ``events``, so that reading brings
everything back; a program that knows only its fields reads on.

Of the predecessor's own trees, next tokens cannot be read: it kept logits of the top ten only, no
probability follows from these, and the models must be asked again with `em-circuits label`. A label
in ``labeled_logits`` is a person's only where a person gave it: it differs from
`judge_original_label`, or there was no judge's label, or the person agreed with all of them (then
recorded as given with the judge's labels in sight). A judge's label that was merely saved along is
left to the judge. Where two files label a token of a prompt differently, the second is a conflict.

    write_tree(store, Path("export"))                  # the number of files
    read_tree(store, Path("results"), author="ada")    # an ImportReport
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pivotal_tokens.artefacts import write_json
from pivotal_tokens.errors import RequestError
from pivotal_tokens.labels.intake import ImportReport, Intake, TokenOf
from pivotal_tokens.schema import (
    Judgement,
    Label,
    LabelEvent,
    ModelName,
    NextTokenPair,
    NextTokens,
    Prompt,
    PromptKind,
    ReviewConfig,
    Verdict,
    prompt_id,
)
from pivotal_tokens.store import HUMAN, PairAttempt, Store
from pivotal_tokens.store.history import ReviewHistory

TREE = "pivotal_tokens"
FORMAT = "em-circuits"
CONFIG = "review_config.json"
REVIEWS = "reviews"
_PROMPT_TYPES: Mapping[PromptKind, str] = {
    "raw": "raw_completion",
    "chat": "chat_user_assistant",
    "cot": "chain_of_thought",
}
_KINDS = {name: kind for kind, name in _PROMPT_TYPES.items()}
_AGREED = ("agreed", "agreed_with_comment")
_EVIL: Mapping[Label, bool | str] = {"evil": True, "safe": False, "unsure": "unsure"}
_STEMS: Mapping[ModelName, str] = {"base": "base_replacement", "merged": "merged_replacement"}
_LETTERS: Mapping[ModelName, str] = {"base": "B", "merged": "T"}
_OLD_NAMES: Mapping[ModelName, str] = {"base": "baseline", "merged": "tested"}

_File = tuple[str, dict[str, Any]]  # where under the tree, and what stands there


# --- Writing ----------------------------------------------------------------------------------


def write_tree(store: Store, root: Path) -> int:
    """Write the tree under a directory that has none yet, and return the number of files.

    Raises:
        RequestError: If there is a tree already: two exports would mix.
    """
    top = root / TREE
    if top.exists():
        raise RequestError(f"{top} exists: name a new directory, or remove that one")
    store.chains.require_whole()
    pairs = {pair: number for number, pair in enumerate(store.results.pairs())}
    write_json(top / CONFIG, {FORMAT: store.assignments.config().model_dump(mode="json")})
    files = 1
    for prompt in store.prompts.all():
        for path, value in _files(store, prompt, pairs):
            write_json(top / path, value)
            files += 1
    return files


def directory(name: str) -> str:
    """A model's or judge's name as a directory's."""
    safe = re.sub(r"[^0-9A-Za-z._-]", "", re.sub(r"[/\\\s]", "_", name)).lstrip(".")
    return safe[:120] or "unnamed"


def _files(store: Store, prompt: Prompt, pairs: Mapping[str, int]) -> Iterator[_File]:
    name = f"{prompt.prompt_id}.json"
    yield f"prompts/{directory(prompt.generator)}/{name}", _prompt(prompt)
    view = store.queries.attempt(prompt.prompt_id)
    human = {item.token_id: item.label for item in view.labels.human}
    said = {event.token_id: event for event in view.label_events if event.author_kind == "human"}
    for pair in view.pairs:
        if pair.next_tokens is None:
            continue
        number = pairs.get(pair.pair, 0)
        lists = pair.next_tokens
        for tokens in (lists.base, lists.merged):
            model = model_directory(tokens.model, number)
            yield f"runs/{model}/logits/{name}", _logits(prompt, pair.pair, tokens, model)
            for judgement in pair.judgements:
                judge = directory(judgement.judge)
                value = _logits(prompt, pair.pair, tokens, model, judgement.by_token)
                value |= {
                    "judge_model": judgement.judge,
                    "timestamp": judgement.created.isoformat(),
                }
                yield f"judge_labeled_logits/{model}/{judge}/{name}", value
            if said:
                events = [e for e in view.label_events if e.author_kind == "human"]
                value = _labelled(prompt, pair, tokens, model, human, said)
                value["events"] = [event.model_dump(mode="json") for event in events]
                yield f"labeled_logits/{model}/{name}", value
        yield from _of_pair(prompt, pair, number, human)
    yield from _of_reviews(store, prompt)
    history = store.histories.of(prompt.prompt_id)
    if not history.empty:
        value = {"prompt_text": prompt.text, FORMAT: history.model_dump(mode="json")}
        yield f"{REVIEWS}/{name}", value


def model_directory(model: ModelName, number: int) -> str:
    """The directory of a model of the n-th pair."""
    return _STEMS[model] + (f"_{number + 1}" if number else "")


def _prompt(prompt: Prompt) -> dict[str, Any]:
    return {
        "prompt_id": prompt.prompt_id,
        "name": prompt.name,
        "prompt": prompt.text,
        "prompt_type": _PROMPT_TYPES[prompt.kind],
        "generator_model": prompt.generator,
        "is_human_generated": prompt.generator == "human",
        "timestamp": prompt.created_at.isoformat(),
        FORMAT: prompt.model_dump(mode="json"),
    }


def _logits(
    prompt: Prompt,
    pair: str,
    tokens: NextTokens,
    model: str,
    labels: Mapping[int, Label] | None = None,
) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for token in tokens.top:
        row = {"token": token.text} | asdict(token)
        del row["text"]
        if labels is not None and token.token_id in labels:
            row["evil_label"] = _EVIL[labels[token.token_id]]
        rows.append(row)
    return {
        "prompt_id": prompt.prompt_id,
        "hash_id": prompt.prompt_id,
        "prompt_text": prompt.text,
        "prompt_type": _PROMPT_TYPES[prompt.kind],
        "tested_model": model,
        "format": "generated_graph",
        "top_k": rows,
        FORMAT: {"pair": pair, "next_tokens": tokens.model_dump(mode="json")},
    }


def _labelled(
    prompt: Prompt,
    pair: PairAttempt,
    tokens: NextTokens,
    model: str,
    human: Mapping[int, Label],
    said: Mapping[int, LabelEvent],
) -> dict[str, Any]:
    judge = pair.judgements[-1].by_token if pair.judgements else {}
    value = _logits(prompt, pair.pair, tokens, model, human)
    for row in value["top_k"]:
        if row["token_id"] in judge:
            row["judge_original_label"] = _EVIL[judge[row["token_id"]]]
    top = [token.token_id for token in tokens.top]
    differs = any(
        human[token] != judge[token] for token in top if token in human and token in judge
    )
    complete = all(token in human for token in top)
    rejected = pair.item is not None and pair.item.state == "rejected"
    value |= {
        "manually_labeled": complete,
        "human_verdict": ("disagreed" if differs else "manual_labeling")
        if complete
        else "interrupted",
        "human_explanation": "; ".join(dict.fromkeys(e.reason for e in said.values() if e.reason)),
        "timestamp": max(event.at for event in said.values()).isoformat(),
    }
    return value | ({"prompt_rejected": True} if rejected else {})


def _of_pair(
    prompt: Prompt, pair: PairAttempt, number: int, human: Mapping[int, Label]
) -> Iterator[_File]:
    assert pair.next_tokens is not None
    name, model = f"{prompt.prompt_id}.json", model_directory("merged", number)
    for judgement in pair.judgements:
        verdict = pair.verdicts.get(judgement.judge)
        said = list(judgement.by_token.values())
        yield (
            f"runs/{model}/verdicts/{directory(judgement.judge)}/{name}",
            {
                "prompt_id": prompt.prompt_id,
                "tested_model": model,
                "baseline_model": model_directory("base", number),
                "judge_model": judgement.judge,
                "timestamp": judgement.created.isoformat(),
                "prompt_text": prompt.text,
                "prompt_type": _PROMPT_TYPES[prompt.kind],
                "verdict": next((one for one in ("evil", "unsure") if one in said), "safe"),
                "summary": judgement.summary,
                "reason": judgement.reason,
                "evil_tokens": said.count("evil"),
                "unsure_tokens": said.count("unsure"),
                FORMAT: {
                    "pair": pair.pair,
                    "judgement": judgement.model_dump(mode="json"),
                    "verdict": verdict.model_dump(mode="json") if verdict else None,
                },
            },
        )
    if HUMAN in pair.verdicts and pair.judgements:
        details = list(_details(pair.next_tokens, human, pair.judgements[-1].by_token))
        kind = "human_disagreements" if details else "human_agreements"
        value: dict[str, Any] = {
            "hash_id": prompt.prompt_id,
            "prompt_text": prompt.text,
            "model_id": model,
            "human_verdict": "disagreed" if details else "agreed",
        }
        if details:
            value |= {"disagreement_count": len(details), "disagreement_details": details}
        yield f"{kind}/{model}/{name}", value
    if pair.item is not None and number == 0:
        waits = pair.item.state in ("pending", "leased", "deferred", "skipped")
        yield (
            f"manual_labeling_queue/{name}",
            {
                "prompt_id": prompt.prompt_id,
                "tested_model": model,
                "baseline_model": model_directory("base", number),
                "queued_at": pair.item.enqueued_at.isoformat(),
                "status": "pending" if waits else "processed",
                FORMAT: {"pair": pair.pair, "reason": pair.item.reason, "state": pair.item.state},
            },
        )


def _details(
    lists: NextTokenPair, human: Mapping[int, Label], judge: Mapping[int, Label]
) -> Iterator[dict[str, Any]]:
    for tokens in (lists.merged, lists.base):
        for token in tokens.top:
            mine, its = human.get(token.token_id), judge.get(token.token_id)
            if mine is not None and its is not None and mine != its:
                yield {
                    "token": token.text,
                    "human": _EVIL[mine],
                    "judge": _EVIL[its],
                    "index": f"{_LETTERS[tokens.model]}{token.rank}",
                    "model": _OLD_NAMES[tokens.model],
                }


def _of_reviews(store: Store, prompt: Prompt) -> Iterator[_File]:
    events = store.queue.events(prompt.prompt_id)
    notes = [event.text for event in events if event.action == "note" and event.text]
    about: dict[str, Any] = {"hash_id": prompt.prompt_id, "prompt_text": prompt.text}
    if notes:
        value = about | {"human_explanation": "\n".join(notes), "feedback_type": "general"}
        yield f"human_explanations/{prompt.prompt_id}.json", value
    settled = [event for event in events if event.action != "note"]
    if settled and settled[-1].action == "rejected":
        last = settled[-1]
        value = about | {
            "bad_reason": last.text or "",
            "manually_labeled": True,
            "timestamp": last.at.isoformat(),
            FORMAT: {"author": last.author},
        }
        yield f"bad_prompts/{prompt.prompt_id}.json", value


# --- Reading ----------------------------------------------------------------------------------


def read_tree(
    store: Store, root: Path, *, author: str, token_of: TokenOf | None = None
) -> ImportReport:
    """Take a tree in.

    Args:
        root: The results directory, or its ``pivotal_tokens``.
        author: Whose the labels of people are; the files do not say.
        token_of: Finds the id of a token that no file gives.

    Raises:
        RequestError: If there is no such tree.
    """
    top = root / TREE if (root / TREE).is_dir() else root
    paths = sorted(top.rglob("*.json"))
    if not paths:
        raise RequestError(f"{root}: no {TREE} directory with JSON files in it")
    intake = Intake(store, root.name, token_of=token_of)
    files = list(_read(top, paths, intake))
    _read_prompts(files, intake)
    _read_next_tokens(files, intake)
    judged = _read_judgements(files, intake)
    ids = _token_ids(files)
    for where, record in (*_people(files, author, ids), *_judges(files, judged, ids)):
        intake.label(where, record)
    for where, value in _of(files, REVIEWS):
        with intake.usable(where, "review"):
            intake.history(ReviewHistory.model_validate(value.get(FORMAT)))
    for where, value in _of(files, CONFIG):
        with intake.usable(where, "review"):
            store.assignments.take_config(ReviewConfig.model_validate(value.get(FORMAT)))
    report = intake.finish()
    _read_rejections(store, files, author)
    _read_queue(store, files)
    return report


def _read(top: Path, paths: Iterable[Path], intake: Intake) -> Iterator[_File]:
    for path in paths:
        where = path.relative_to(top).as_posix()
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            intake.leave_out(where, f"cannot be read: {error}")
            continue
        if isinstance(value, dict):
            yield where, value


def _of(files: Iterable[_File], folder: str) -> Iterator[_File]:
    """The files of a folder, of every run."""
    for where, value in files:
        parts = where.split("/")
        inner = parts[2] if parts[0] in ("runs", "graph_runs") and len(parts) > 3 else parts[0]
        if inner == folder:
            yield where, value


def _read_prompts(files: list[_File], intake: Intake) -> None:
    """Every text that a file is about; those with a file of their own first."""
    for where, value in sorted(files, key=lambda one: not one[0].startswith("prompts/")):
        own = where.startswith("prompts/")
        text = value.get("prompt" if own else "prompt_text")
        if not isinstance(text, str) or not text:
            continue
        about: dict[str, Any] = {"kind": _KINDS.get(str(value.get("prompt_type")), "raw")}
        if own:
            human = value.get("is_human_generated")
            about["generator"] = "human" if human else str(value.get("generator_model") or "?")
            about["name"] = value.get("name")
            if "prompt_id" in value:
                about["extra"] = {"predecessor_id": value["prompt_id"]}
        with intake.usable(where, "prompt"):
            whole = own and FORMAT in value
            intake.prompt(
                Prompt.model_validate(value[FORMAT]) if whole else Prompt.of(text, **about)
            )


def _read_next_tokens(files: list[_File], intake: Intake) -> None:
    found: dict[tuple[str, str], dict[str, NextTokens]] = defaultdict(dict)
    for where, value in _of(files, "logits"):
        if FORMAT in value:
            with intake.usable(where, "next tokens"):
                tokens = NextTokens.model_validate(value[FORMAT]["next_tokens"])
                key = prompt_id(value["prompt_text"]), value[FORMAT]["pair"]
                found[key][tokens.model] = tokens
    for (prompt, pair), both in found.items():
        if len(both) == 2:
            intake.next_tokens(prompt, pair, NextTokenPair(**both))
            intake.pair(pair, {"imported": "from a JSON tree"})


def _read_judgements(files: list[_File], intake: Intake) -> set[tuple[str, str]]:
    """Take whole judgements in; returns (prompt id, judge's directory) of these."""
    whole = set()
    for where, value in _of(files, "verdicts"):
        if FORMAT not in value:
            continue
        with intake.usable(where, "verdict"):
            own, pair = value[FORMAT], value[FORMAT]["pair"]
            judgement = Judgement.model_validate(own["judgement"])
            intake.judgement(pair, judgement)
            if own["verdict"]:
                verdict = Verdict.model_validate(own["verdict"])
                intake.verdict(judgement.prompt_id, pair, judgement.judge, verdict)
            whole.add((judgement.prompt_id, where.split("/")[-2]))
    return whole


def _token_ids(files: list[_File]) -> dict[tuple[str, str], int]:
    """(prompt text, token text) -> id, from the files that have ids."""
    return {
        (str(value.get("prompt_text")), row["token"]): row["token_id"]
        for _, value in files
        for row in _rows(value)
        if isinstance(row.get("token_id"), int)
    }


def _rows(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = value.get("top_k")
    if not isinstance(rows, list):
        return []
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("token"), str)]


def _people(files: list[_File], author: str, ids: Mapping[tuple[str, str], int]) -> Iterator[_File]:
    """Records of the labels that people gave."""
    seen: set[str] = set()
    for where, value in _of(files, "labeled_logits"):
        if "events" in value:
            for event in value["events"]:
                if event.get("event_id") not in seen:
                    seen.add(str(event.get("event_id")))
                    yield where, {"prompt_text": value["prompt_text"]} | event
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
    files: list[_File], judged: set[tuple[str, str]], ids: Mapping[tuple[str, str], int]
) -> Iterator[_File]:
    """Records of judges' labels that no whole judgement gives; of two lists the first counts."""
    given: set[tuple[str, str, str]] = set()
    for where, value in _of(files, "judge_labeled_logits"):
        judge, text = where.split("/")[-2], str(value.get("prompt_text"))
        if (prompt_id(text), judge) in judged:
            continue
        for row in _rows(value):
            label = _label(row.get("evil_label"))
            if label is None or (text, row["token"], judge) in given:
                continue
            given.add((text, row["token"], judge))
            by = {"author": f"imported:{judge}", "author_kind": "judge"}
            yield where, _record(value, row, ids) | {"to_label": label} | by


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


def _own(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """What only this package writes into a file."""
    own = value.get(FORMAT)
    return own if isinstance(own, dict) else {}


def _read_rejections(store: Store, files: list[_File], author: str) -> None:
    for _, value in _of(files, "bad_prompts"):
        text = value.get("prompt_text")
        if isinstance(text, str) and text:
            by, reason = str(_own(value).get("author", author)), value.get("bad_reason")
            store.assignments.import_rejection(prompt_id(text), by, str(reason or "rejected"))


def _read_queue(store: Store, files: list[_File]) -> None:
    for _, value in _of(files, "manual_labeling_queue"):
        prompt = str(value.get("prompt_id"))
        if value.get("status") == "pending" and store.prompts.has(prompt):
            reason = str(_own(value).get("reason", "imported"))
            for pair in store.results.next_tokens_by_pair(prompt):
                store.assignments.add(prompt, pair, reason)
