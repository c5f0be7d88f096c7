"""Grammar of replies: where the answer of a model stands in what it wrote.

    reply   = { thought } { prose | fence | object }
    thought = [ "<think>" ] anything "</think>"           its opening tag may be the template's
    object  = "{" ... "}"                                 JSON, not within an unfinished object

What counts is after the last closing tag. There the *last* complete object is the answer, and only
if nothing unfinished follows. Earlier objects that would do as answers too must say the same, or it
must be marked which is final ("Final answer:" before the last, "Draft:" before all others). Of all
else nothing is read: a draft is no verdict, and nothing is repaired or guessed.

    read_object('Draft: {"n": 1}. Final: {"n": 2}', Answer)       # Answer(n=2)
    read_object('{"n": 1} or {"n": 2}', Answer)                   # Unreadable: they differ
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)

_THINKERS = (
    "think|thinking|thought|thoughts|reasoning|reason|reflection|analysis|scratchpad|seed:think"
)
_OPENS = (
    rf"<(?:{_THINKERS})>|\[THINK\]|<\|channel\|>(?:analysis|commentary)|◁think▷|"
    r"<\|(?:begin_of_thought|start_thinking)\|>|<unused94>"
)
_CLOSES = (
    rf"</(?:{_THINKERS})>|\[/THINK\]|<\|channel\|>final|◁/think▷|"
    r"<\|(?:end_of_thought|end_thinking)\|>|<unused95>"
)
_FENCE = r"^[ \t]*(?:```|~~~)"
_PIECES = re.compile(
    rf"(?P<opens>{_OPENS})|(?P<closes>{_CLOSES})|(?P<fence>{_FENCE})|(?P<begin>\{{)|(?P<end>\}})",
    re.IGNORECASE | re.MULTILINE,
)
_FINAL = re.compile(r"\b(final|finally|corrected|correction|revised|definitive)\b", re.IGNORECASE)
_DRAFT = re.compile(
    r"\b(draft|tentative|preliminary|provisional|initial|first (?:try|attempt|pass|guess))\b",
    re.IGNORECASE,
)
_NOT = re.compile(r"\b(not|no|isn't|never|before|until|yet)\b", re.IGNORECASE)
_LONGEST = 400_000
_MOST_BROKEN = 500
"""Braces that begin no JSON; reading on would take time without end."""
_SHOWN_ERRORS, _SHOWN_KEY = 3, 40


class Unreadable(ValueError):
    """A reply holds no answer that can be used; the message goes to the model asked again."""


@dataclass(frozen=True)
class _Object:
    start: int
    end: int
    nested: bool
    """Within something that is begun and not finished."""


def read_object(text: str, schema: type[Model]) -> Model:
    """The answer in a text.

    Raises:
        Unreadable: If there is none, or it cannot be told which is final.
    """
    if len(text) > _LONGEST:
        raise Unreadable(f"the reply is longer than {_LONGEST} characters")
    objects, unfinished = _objects(text)
    if not objects:
        raise Unreadable("there is no complete JSON object in the reply")
    *earlier, last = objects
    if unfinished:
        raise Unreadable("an object that is not finished follows the last complete one")
    if last.nested:
        raise Unreadable("the last JSON object stands within one that is not complete")
    answer = _validated(text[last.start : last.end], schema)
    others = []
    for one in earlier:
        try:
            others.append((one, _validated(text[one.start : one.end], schema)))
        except Unreadable:
            continue
    if all(other == answer for _, other in others):
        return answer
    before = [_line_before(text, one.start) for one, other in others if other != answer]
    mine = _line_before(text, last.start)
    final = _FINAL.search(mine) and not _NOT.search(mine) and not _DRAFT.search(mine)
    drafts = all(_DRAFT.search(line) and not _NOT.search(line) for line in before)
    if final or (drafts and not _DRAFT.search(mine)):
        return answer
    raise Unreadable(
        f"{len(before) + 1} answers that differ, and no mark of which is final; give one object"
    )


def answer_text(message: dict[str, Any], *, reasoning: bool = False) -> str:
    """What a message of an assistant says, wherever it stands.

    Args:
        reasoning: Read what stands in a field for reasoning, where nothing else does.

    Raises:
        Unreadable: If it says nothing, with what came instead.
    """
    texts = [*_parts(message.get("content")), *_tool_calls(message)]
    if text := "\n".join(filter(str.strip, texts)):
        return text
    thought = next(
        (
            part
            for name in ("reasoning_content", "reasoning")
            for part in ["\n".join(_parts(message.get(name)))]
            if part.strip()
        ),
        "",
    )
    # A server that takes a whole reply for reasoning leaves nothing but the object there.
    if thought and (reasoning or _is_one_object(thought)):
        return thought
    if thought:
        raise Unreadable(
            f"the reply is empty but for {len(thought)} characters of reasoning "
            "(--read-reasoning reads them)"
        )
    raise Unreadable("the reply is empty")


def without_surrogates(text: str) -> str:
    r"""Half characters as `\udXXX`: no file and no database can hold them."""
    return text.encode("utf-8", "backslashreplace").decode()


def _objects(text: str) -> tuple[list[_Object], bool]:
    """Complete objects after the last thought, and whether an unfinished one follows them.

    Raises:
        Unreadable: If a thought does not end.
    """
    found: list[_Object] = []
    depth = broken = 0
    thinking = unfinished = False
    place = 0
    while piece := _PIECES.search(text, place):
        place = piece.end()
        match piece.lastgroup:
            case "opens":
                thinking = True
            case "closes":
                found, depth, thinking, unfinished = [], 0, False, False
            case "fence":  # whatever was begun in a fence ends with it
                depth = 0
            case "end":
                depth = max(0, depth - 1)
            case _:
                end = _end_of_object(text, piece.start())
                if end is not None:
                    found.append(_Object(piece.start(), end, nested=depth > 0))
                    unfinished, place = False, end
                    continue
                depth, unfinished, broken = depth + 1, True, broken + 1
                if broken > _MOST_BROKEN:
                    raise Unreadable("there are too many braces without an object in the reply")
    if thinking:
        raise Unreadable("its thinking does not end")
    return found, unfinished


_LENIENT = json.JSONDecoder(strict=False)


def _end_of_object(text: str, start: int) -> int | None:
    """Where the JSON object ends that begins at `start`; None where none does."""
    try:
        return _LENIENT.raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return None


def _validated(text: str, schema: type[Model]) -> Model:
    """An object's text as the schema has it, by strict JSON.

    Raises:
        Unreadable: With what is wrong in it.
    """
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
        escaped = json.dumps(_cleaned(value), allow_nan=False)
        return schema.model_validate_json(escaped, strict=True)
    except ValidationError as error:
        raise Unreadable(_in_words(error)) from None
    except Unreadable:
        raise
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"the object is not strict JSON: {str(error)[:100]}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise Unreadable(f"the key {_shown(twice)} stands in one object twice")
    return found


def _no_number(name: str) -> Any:
    raise Unreadable(f"{name} is no number of JSON")


def _cleaned(value: Any) -> Any:
    """The value without half characters."""
    match value:
        case str():
            return without_surrogates(value)
        case list():
            return [_cleaned(item) for item in value]
        case dict():
            return {without_surrogates(key): _cleaned(item) for key, item in value.items()}
        case _:
            return value


def _shown(key: object) -> str:
    """A key of a reply, cut and escaped: it goes into the next question."""
    text = str(key)
    cut = text if len(text) <= _SHOWN_KEY else text[: _SHOWN_KEY - 1] + "…"
    return json.dumps(cut).replace("<", "\\u003c")


def _in_words(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    said = [f"{_place(e['loc'])}: {e['msg']}" for e in found[:_SHOWN_ERRORS]]
    more = f" and {len(found) - _SHOWN_ERRORS} more" if len(found) > _SHOWN_ERRORS else ""
    return "; ".join(said) + more


def _place(parts: tuple[str | int, ...]) -> str:
    """Where something is wrong: names of the schema as they are, other keys cut and escaped."""
    shown = [
        str(part) if isinstance(part, int) or re.fullmatch(r"\w{1,40}", part) else _shown(part)
        for part in parts[:6]
    ]
    return ".".join(shown) or "reply"


def _line_before(text: str, start: int) -> str:
    """The last line of words before an object, fences left out."""
    lines = text[max(0, start - 400) : start].splitlines()
    words = (line for line in reversed(lines) if not re.match(_FENCE, line))
    # Of a line with an earlier object only what follows that.
    return next((line.rsplit("}", 1)[-1] for line in words if line.strip(" \t`*#:_")), "")


def _parts(content: Any) -> Iterator[str]:
    """The texts of a content: one string, or parts of which thinking is left out."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            if isinstance(part, str):
                yield part
            elif isinstance(part, dict) and part.get("type", "text") in ("text", "output_text"):
                yield from _parts(part.get("text"))


def _tool_calls(message: dict[str, Any]) -> Iterator[str]:
    """The arguments of each tool call: models trained on tools answer with one unasked."""
    calls = message.get("tool_calls")
    functions = [
        call.get("function") for call in calls if isinstance(call, dict)
    ] if isinstance(calls, list) else []  # fmt: skip
    for function in (*functions, message.get("function_call")):
        if isinstance(function, dict):
            given = function.get("arguments")
            yield given if isinstance(given, str) else json.dumps(given) if given else ""


def _is_one_object(text: str) -> bool:
    bare = text.strip()
    return bare.startswith("{") and _end_of_object(bare, 0) == len(bare)
