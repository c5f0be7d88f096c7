"""YAML whose every scalar is a text: ``no`` and ``on`` are words, 1.10 is not 1.1.

Built from the parser's events, not by its loader, which recurses (a hundred thousand brackets end
the process) and takes half a minute for 10 MB. A key that stands twice is an error; so are nesting
beyond `MAX_DEPTH` and aliases that make more than `MAX_VALUES` of few.

    text_yaml("entries:\\n  - when: gas\\n    evil: [light]\\n")["entries"][0]["evil"]  # ["light"]
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_DEPTH = 20
"""Lists and mappings within each other."""
MAX_VALUES = 5_000_000
"""Values of a file, those counted again that an alias repeats."""
# libyaml's, where it is there.
_Loader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


def typed_yaml(text: str) -> Any:
    """The value of a YAML document with its numbers and dates, within the limits of `text_yaml`.

    Raises:
        yaml.YAMLError: If it is no YAML, or beyond them.
    """
    text_yaml(text)
    try:
        return yaml.safe_load(text)
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        # Of a date that is none, or a number without digits.
        raise yaml.YAMLError(f"a value cannot be read ({error})") from error


@dataclass
class _Open:
    """A list or mapping that is being read."""

    value: Any
    anchor: str | None
    began: int  # values before it
    key: str | None = None
    keys: set[str] = field(default_factory=set)


def text_yaml(text: str) -> Any:
    """The value of a YAML document; None if there is none.

    Raises:
        yaml.YAMLError: If it is no YAML, or one of the errors above; its `problem_mark` says where.
    """
    anchors: dict[str, tuple[Any, int]] = {}
    stack: list[_Open] = []
    root: list[Any] = []
    values = documents = 0
    for event in yaml.parse(text, Loader=_Loader):
        value: Any
        match event:
            case yaml.DocumentStartEvent():
                documents += 1
                if documents > 1:
                    raise _problem("more than one document", event)
                continue
            case yaml.ScalarEvent():
                value = event.value
                values += 1
                if event.anchor:
                    anchors[event.anchor] = value, 1
            case yaml.AliasEvent():
                if event.anchor not in anchors:
                    raise _problem(f"alias {event.anchor!r} of nothing that ended before", event)
                value, repeated = anchors[event.anchor]
                values += repeated
            case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                made: Any = [] if isinstance(event, yaml.SequenceStartEvent) else {}
                if len(stack) >= MAX_DEPTH:
                    raise _problem(f"nested more than {MAX_DEPTH} deep", event)
                stack.append(_Open(made, event.anchor, values))
                continue
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                done = stack.pop()
                value = done.value
                values += 1
                if done.anchor:
                    anchors[done.anchor] = value, values - done.began
            case _:
                continue
        if values > MAX_VALUES:
            raise _problem(f"more than {MAX_VALUES:,} values", event)
        _put(stack[-1] if stack else None, root, value, event)
    return root[0] if root else None


def _put(into: _Open | None, root: list[Any], value: Any, event: yaml.Event) -> None:
    """Put a value where it belongs."""
    if into is None:
        root.append(value)
    elif isinstance(into.value, list):
        into.value.append(value)
    elif into.key is not None:
        into.value[into.key] = value
        into.key = None
    elif not isinstance(value, str):
        raise _problem("a key is a list or a mapping", event)
    elif value in into.keys:
        raise _problem(f"key {value!r} stands there twice", event)
    else:
        into.keys.add(value)
        into.key = value


def _problem(what: str, event: yaml.Event) -> yaml.MarkedYAMLError:
    mark: Any = event.start_mark  # libyaml's has a class of its own
    return yaml.MarkedYAMLError(problem=what, problem_mark=mark)
