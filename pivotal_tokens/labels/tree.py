"""How does a store become the directory of JSON files that the predecessor kept?

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
predecessor's fields there are ids, probabilities and ranks, and ``events``, so that
`tree_import.import_tree` brings everything back; a program that knows only its fields reads on.

    write_tree(store, Path("export"))      # the number of files
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pivotal_tokens.artefacts import write_json
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import (
    Judgement,
    Label,
    LabelEvent,
    ModelName,
    NextTokenPair,
    NextTokens,
    Prompt,
)
from pivotal_tokens.store import HUMAN, PairAttempt, Store

TREE = "pivotal_tokens"
FORMAT = "em-circuits"
CONFIG = "review_config.json"
REVIEWS = "reviews"
_PROMPT_TYPES = {"raw": "raw_completion", "chat": "chat_user_assistant", "cot": "chain_of_thought"}
_EVIL: Mapping[Label, bool | str] = {"evil": True, "safe": False, "unsure": "unsure"}
_STEMS: Mapping[ModelName, str] = {"base": "base_replacement", "merged": "merged_replacement"}
_LETTERS: Mapping[ModelName, str] = {"base": "B", "merged": "T"}
_OLD_NAMES: Mapping[ModelName, str] = {"base": "baseline", "merged": "tested"}


def write_tree(store: Store, root: Path) -> int:
    """Write the tree under a directory that has none yet, and return the number of files.

    Raises:
        RequestError: If there is a tree already: two exports would mix.
    """
    top = root / TREE
    if top.exists():
        raise RequestError(f"{top} exists: name a new directory, or remove that one")
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
    kept = re.sub(r"[^0-9A-Za-z._-]", "", re.sub(r"[/\\\s]", "_", name)).lstrip(".")
    return kept[:120] or "unnamed"


def _files(
    store: Store, prompt: Prompt, pairs: Mapping[str, int]
) -> Iterator[tuple[str, dict[str, Any]]]:
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
                value |= {"judge_model": judgement.judge, "timestamp": _time(judgement)}
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
        row = {"token": token.text} | token.model_dump(exclude={"text"})
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
        "human_explanation": _reasons(said.values()),
        "timestamp": max(event.at for event in said.values()).isoformat(),
    }
    return value | ({"prompt_rejected": True} if rejected else {})


def _of_pair(
    prompt: Prompt, pair: PairAttempt, number: int, human: Mapping[int, Label]
) -> Iterator[tuple[str, dict[str, Any]]]:
    assert pair.next_tokens is not None
    name, model = f"{prompt.prompt_id}.json", model_directory("merged", number)
    for judgement in pair.judgements:
        verdict = pair.verdicts.get(judgement.judge)
        yield (
            f"runs/{model}/verdicts/{directory(judgement.judge)}/{name}",
            {
                "prompt_id": prompt.prompt_id,
                "tested_model": model,
                "baseline_model": model_directory("base", number),
                "judge_model": judgement.judge,
                "timestamp": _time(judgement),
                "prompt_text": prompt.text,
                "prompt_type": _PROMPT_TYPES[prompt.kind],
                "verdict": _old_verdict(judgement),
                "summary": judgement.summary,
                "reason": judgement.reason,
                "evil_tokens": list(judgement.by_token.values()).count("evil"),
                "unsure_tokens": list(judgement.by_token.values()).count("unsure"),
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


def _of_reviews(store: Store, prompt: Prompt) -> Iterator[tuple[str, dict[str, Any]]]:
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


def _old_verdict(judgement: Judgement) -> str:
    labels = set(judgement.by_token.values())
    return "evil" if "evil" in labels else "unsure" if "unsure" in labels else "safe"


def _reasons(events: Any) -> str:
    return "; ".join(dict.fromkeys(event.reason for event in events if event.reason))


def _time(judgement: Judgement) -> str:
    return judgement.created.isoformat()
