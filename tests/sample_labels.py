"""Labels to test with: a judge's, and a person's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pivotal_tokens.schema import Judgement, Label, LabelEvent, TokenLabel


def judgement(
    prompt_id: str, labels: Mapping[int, Label], judge: str = "j", **fields: Any
) -> Judgement:
    """What a judge says of a prompt's tokens."""
    given = tuple(TokenLabel(token_id=token, label=label) for token, label in labels.items())
    return Judgement(prompt_id=prompt_id, judge=judge, labels=given, **fields)


def event(
    prompt_id: str, token_id: int, label: Label | None, author: str = "ada", **fields: Any
) -> LabelEvent:
    """What a person says of one token, where nothing was said before."""
    more = {"from_label": None, "author_kind": "human"} | fields
    return LabelEvent(prompt_id=prompt_id, token_id=token_id, to_label=label, author=author, **more)


def events(
    prompt_id: str, labels: Mapping[int, Label], author: str = "ada", **fields: Any
) -> list[LabelEvent]:
    """What a person says of a prompt's tokens."""
    return [event(prompt_id, token, label, author, **fields) for token, label in labels.items()]
