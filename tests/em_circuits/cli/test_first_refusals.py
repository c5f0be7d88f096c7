"""No command's first refusal loads a model, or a library that could: every command is tried.

The requests are made from what each command declares: an option that does not exist, values that no
option takes, files and prompts that are not there, models that are none. One process forks a child
per command, which tells what it had imported after each refusal.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

from em_circuits.cli.app import app

HEAVY = ("torch", "transformers", "circuit_tracer", "peft")
NOWHERE = "/nowhere/at/all"
LOADING = {
    "doctor": [],
    "label": ["--n", "1"],
    "graphs build": ["--n", "1"],
    "features mediate": ["--all"],
    "steer sweep": ["--plan", NOWHERE],
    "evaluate": [],
    "demo": [],
    "transcoders check": ["--text", __file__],
}
"""Commands that load models by what stands before them alone, and what they want besides."""

ANYTHING = ("prompts add", "export", "organism fetch")
"""Commands that can do with any argument that their types take."""

_PROGRAM = f"""
import contextlib, importlib, io, json, os, pkgutil, sys
import em_circuits.cli
import em_circuits.cli.app as cli
for module in pkgutil.iter_modules(em_circuits.cli.__path__):
    importlib.import_module("em_circuits.cli." + module.name)  # once, for every child
for command, requests in json.load(sys.stdin).items():
    sys.stdout.flush()
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        continue
    for request in requests:
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            status = cli.run(request)
        heavy = [name for name in {HEAVY!r} if name in sys.modules]
        print(json.dumps([command, request, status, heavy, said.getvalue()[:300]]), flush=True)
        if heavy:
            break
    os._exit(0)
"""


def commands(
    group: click.Group = app, words: tuple[str, ...] = ()
) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by its words."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group) and not command.invoke_without_command:
            yield from commands(command, (*words, name))
        else:
            yield " ".join((*words, name)), command


def wrong_value(option: click.Option) -> str | None:
    """A value that an option's type refuses, where there is one."""
    kind = option.type
    if isinstance(kind, click.Choice):
        return "no-such-choice"
    if isinstance(kind, click.IntRange | click.FloatRange) and kind.min is not None:
        return str(kind.min - 1)
    if isinstance(kind, type(click.INT) | type(click.FLOAT)):
        return "many"
    return NOWHERE if isinstance(kind, click.Path) and kind.exists else None


def right_value(parameter: click.Parameter) -> str:
    """A value that the type of an option or argument takes."""
    kind = parameter.type
    if isinstance(kind, click.Choice):
        return str(next(iter(kind.choices)))
    if isinstance(kind, type(click.INT) | type(click.FLOAT)):
        return str(int(getattr(kind, "min", None) or 1))
    return __file__ if isinstance(kind, click.Path) and kind.exists else "zz"


def requests(name: str, command: click.Command, root: Path) -> list[list[str]]:
    """Lines that every command must refuse at once."""
    words = ["--root", str(root), *name.split()]
    options = [one for one in command.params if isinstance(one, click.Option)]
    arguments = [one for one in command.params if isinstance(one, click.Argument)]
    found = [[*words, "--no-such-option"]]
    for option in options:
        if not option.is_flag and (value := wrong_value(option)) is not None:
            found.append([*words, f"{option.opts[0]}={value}"])
    if any(one.required for one in [*options, *arguments]):
        found.append(words)
    if arguments and name not in ANYTHING:
        # Nothing is there: no store, no graph, no file of that name.
        filled = [right_value(one) for one in arguments]
        wanted = [f"{one.opts[0]}={right_value(one)}" for one in options if one.required]
        found.append([*words, *filled, *wanted])
    if name in LOADING:
        neurons = ["--base", NOWHERE, "--adapter", NOWHERE, "--transcoders", "none"]
        fronts = [["--transcoders", NOWHERE], neurons, ["--dtype", "float16"]]
        if name != "transcoders check":  # which looks at no adapter
            fronts.append(["--adapter", NOWHERE])
        found += [[*front, *words, *LOADING[name]] for front in fronts]
    return found


@cache
def told(root: Path) -> tuple[list[list], dict[str, list[list[str]]]]:
    asked = {name: requests(name, command, root / "root") for name, command in commands()}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd=root,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()], asked


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[list], dict]:
    return told(tmp_path_factory.mktemp("refusals"))


def test_every_refusal_is_light(answers: tuple[list[list], dict]) -> None:
    found, _ = answers
    heavy = [f"{' '.join(request)}: {loaded}" for _, request, _, loaded, _ in found if loaded]
    assert not heavy, "\n".join(heavy)


def test_every_wrong_request_is_refused_in_words(answers: tuple[list[list], dict]) -> None:
    found, asked = answers
    assert [len(asked[name]) for name in asked] == [
        sum(line[0] == name for line in found) for name in asked
    ]
    wrong = [
        f"{' '.join(request)}: status {status}, {said!r}"
        for _, request, status, _, said in found
        if status not in (1, 2) or "Traceback" in said or not said.strip()
    ]
    assert not wrong, "\n".join(wrong)


def test_every_command_is_tried(answers: tuple[list[list], dict]) -> None:
    _, asked = answers
    assert len(asked) > 45 and set(LOADING) <= set(asked)
    assert sum(len(one) for one in asked.values()) > 250
