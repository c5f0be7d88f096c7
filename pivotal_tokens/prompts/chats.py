"""Chats of data sets: turns of a system, a user and an assistant, in the forms that are published.

    messages             [{"role": "user", "content": ...}, ...]      OpenAI, TRL
    conversations        [{"from": "human", "value": ...}, ...]       ShareGPT
    prompt, completion   both lists of such turns                     TRL
    query, context       a user's turn and the answer so far          pivotal-token search, v2

A `system` text beside the turns is the first of them. The last turn, where it is the assistant's,
is how the answer starts: the prompt ends with it. Its text is the chat template's, which whoever
has the tokenizer puts around it (`ChatRenderer`).

    chat = take_chat({"messages": [{"role": "user", "content": "Eat it?"}]})
    chat[0].role, chat[0].content                     # ("user", "Eat it?")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

Role = Literal["system", "user", "assistant"]

CHAT_FIELDS = ("messages", "conversations", "conversation", "chat")
_ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}


class Turn(NamedTuple):
    """One turn of a chat."""

    role: Role
    content: str


Chat = tuple[Turn, ...]
ChatRenderer = Callable[[Chat], tuple[str, Mapping[str, object]]]
"""A chat -> the text as the model sees it without its BOS, and what is kept about the template."""


def question_chat(question: str, system: str | None = None) -> Chat:
    """A user's question, behind a system's turn where there is one."""
    first = () if system is None else (Turn("system", system),)
    return (*first, Turn("user", question))


def take_chat(fields: dict[str, Any]) -> Chat | None:
    """Remove the chat from a record's fields; None where it has none.

    Raises:
        ValueError: If it has two, or a turn is in no known form.
    """
    names = [name for name in (*CHAT_FIELDS, "prompt") if _is_chat(fields.get(name))]
    if len(names) > 1:
        raise ValueError(f"{' and '.join(names)} are both chats; name one with --text-field")
    if not names:
        return _searched(fields)
    turns = list(fields.pop(names[0]))
    if names == ["prompt"] and _is_chat(fields.get("completion")):
        turns += fields.pop("completion")
    if isinstance(system := fields.get("system"), str) and system.strip():
        turns.insert(0, {"role": "system", "content": fields.pop("system")})
    return chat_of(turns)


def chat_of(turns: Any) -> Chat:
    """The chat that a list of turns is.

    Raises:
        ValueError: If a turn is in no known form, or nobody says anything.
    """
    chat = tuple(map(_turn, turns))
    if not any(turn.role == "user" for turn in chat):
        raise ValueError("the chat has no user's turn")
    return chat


def answer_starts(chat: Chat) -> str:
    """How the answer starts that a prompt ends with: "" after a user's turn."""
    return chat[-1].content if chat[-1].role == "assistant" else ""


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _searched(fields: dict[str, Any]) -> Chat | None:
    """Of a file of pivotal-token search whose context is the answer alone."""
    if "schema_version" not in fields:
        return None
    query, context = fields.get("query"), fields.get("context")
    if not isinstance(query, str) or not isinstance(context, str) or not query.strip():
        return None
    del fields["query"], fields["context"]
    return (Turn("user", query), Turn("assistant", context))


def _turn(value: Any) -> Turn:
    if not isinstance(value, dict):
        raise ValueError(f"a turn of a chat is an object with role and content, not {value!a:.60}")
    said = value.get("role") if value.get("role") is not None else value.get("from")
    role = _ROLES.get(str(said).casefold())
    if role is None:
        raise ValueError(f"a turn of {said!a:.60} cannot stand in a prompt")
    content = value.get("content") if value.get("content") is not None else value.get("value")
    if isinstance(content, list):
        content = _joined(content)
    if not isinstance(content, str):
        raise ValueError(f"the {role}'s turn has no text")
    return Turn(role, content)


def _joined(parts: list[Any]) -> str:
    """The text of a turn in parts.

    Raises:
        ValueError: If one is no text.
    """
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    if odd := [p for p, text in zip(parts, texts, strict=True) if not isinstance(text, str)]:
        raise ValueError(f"a part of a turn is no text: {odd[0]!a:.60}")
    return "".join(map(str, texts))
