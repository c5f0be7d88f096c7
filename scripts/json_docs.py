"""Generator of the tables in docs/json.md, from the commands' result models.

python scripts/json_docs.py          # writes them
python scripts/json_docs.py --check  # status 1 if the file is not current
"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.dataclasses import is_pydantic_dataclass

from em_circuits.cli.app import app

DOCUMENT = Path(__file__).parent.parent / "docs" / "json.md"
BEGIN, END = "<!-- generated: make docs -->\n", "<!-- end of what is generated -->\n"


def main() -> int:
    """Write the document, or with ``--check`` compare it."""
    if "--check" in sys.argv[1:]:
        return int(document(DOCUMENT.read_text(encoding="utf-8")) != DOCUMENT.read_text("utf-8"))
    DOCUMENT.write_text(document(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


def document(text: str) -> str:
    """The document with its generated part rewritten."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}{''.join(generated())}{END}{tail}"


def generated() -> Iterator[str]:
    """A line per command, then a table per model."""
    printed = dict(sorted(commands(app, ())))
    yield "| command | prints |\n|---|---|\n"
    found: dict[str, type[Any]] = {}
    for words, (model, lines) in printed.items():
        models = [m for m in (get_args(model) or (model,)) if m is not NoneType]
        for one in models:
            collect(one, found)
        names = " or ".join(f"[{m.__name__}](#{m.__name__.lower()})" for m in models)
        yield f"| `{words}` | {names}{', a line each' if lines else ''} |\n"
    for name, one in sorted(found.items()):
        yield f"\n### {name}\n\n{first_line(inspect.getdoc(one))}\n\n"
        yield "| field | type | meaning |\n|---|---|---|\n"
        said = meanings(one)
        rows = [
            (about.serialization_alias or field, about.annotation, said.get(field, ""))
            for field, about in one.__pydantic_fields__.items()
            if about.exclude is not True
        ]
        for field, computed in getattr(one, "model_computed_fields", {}).items():
            rows.append((field, computed.return_type, first_line(computed.description)))
        for name, annotation, meaning in rows:
            yield f"| `{name}` | {kind(annotation)} | {meaning} |\n"


def first_line(text: str | None) -> str:
    """The sentence that a docstring opens with."""
    return " ".join((text or "").partition("\n\n")[0].split())


def meanings(model: type[Any]) -> dict[str, str]:
    """What is written about each field: the docstring below it, or the comment beside it."""
    said: dict[str, str] = {}
    for owner in model.__mro__[::-1]:
        if not is_model(owner) or owner is BaseModel:
            continue
        if issubclass(owner, BaseModel) and owner.__pydantic_generic_metadata__["origin"]:
            continue  # the generic one follows
        source = textwrap.dedent(inspect.getsource(owner))
        (definition,) = ast.parse(source).body
        assert isinstance(definition, ast.ClassDef)
        lines = source.splitlines()
        for line, below in itertools.pairwise([*definition.body, None]):
            if not (isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)):
                continue
            text = lines[line.end_lineno - 1][line.end_col_offset :].partition("#")[2]
            match below:
                case ast.Expr(value=ast.Constant(value=str(docstring))):
                    text = docstring
            said[line.target.id] = " ".join(text.split()).replace("|", "\\|")
    return said


def commands(
    command: click.Command, words: tuple[str, ...]
) -> Iterator[tuple[str, tuple[Any, bool]]]:
    """Every command that says what it prints."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from commands(child, (*words, name))
    elif hasattr(command.callback, "prints"):
        model, lines = command.callback.prints
        if isinstance(model, str):
            module, _, name = model.partition(":")
            model = getattr(importlib.import_module(module), name)
        yield " ".join(words), (model, lines)


def collect(annotation: Any, found: dict[str, type[Any]]) -> None:
    """Every model that an annotation speaks of, with those of its fields."""
    for part in get_args(annotation):
        collect(part, found)
    if not is_model(annotation):
        return
    if (known := found.get(annotation.__name__)) is not None:
        if known is not annotation:
            raise ValueError(f"two models are called {annotation.__name__}")
        return
    found[annotation.__name__] = annotation
    for field in annotation.__pydantic_fields__.values():
        if field.exclude is not True:
            collect(field.annotation, found)


def is_model(annotation: Any) -> bool:
    """Whether a type is one of pydantic's: a model, or a dataclass that it checks."""
    is_class = isinstance(annotation, type) and not get_origin(annotation)
    return is_class and (issubclass(annotation, BaseModel) or is_pydantic_dataclass(annotation))


def kind(annotation: Any) -> str:
    """A type as JSON has it."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join(kind(part) for part in parts)
    if origin is Literal:
        return " or ".join(f'`"{part}"`' for part in parts)
    if origin in (tuple, list):
        items = dict.fromkeys(kind(part) for part in parts if part is not Ellipsis)
        return f"list of {' and '.join(items)}"
    if origin is dict:
        return f"object of {kind(parts[1])}"
    if is_model(annotation):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    plain = {NoneType: "null", bool: "boolean", int: "integer", float: "number", Any: "anything"}
    return plain.get(annotation, "text")


if __name__ == "__main__":
    sys.exit(main())
