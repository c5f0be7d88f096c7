"""The options of every command: names, placeholders, defaults; a part of the public contract."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from em_circuits.cli.app import app

# What the default of then is chosen by, where it did anything: old default -> new.
WIDER = {"--backend": ("transformerlens", "auto")}
CONTRACT = Path(__file__).parent / "options.json"


def parameters() -> dict[str, list[dict[str, Any]]]:
    """Every command's parameters, by its words."""
    return {
        " ".join(words): [_parameter(parameter, command) for parameter in command.params]
        for words, command in _commands(app, ())
    }


def _commands(
    command: click.Command, words: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from _commands(child, (*words, name))


def _parameter(parameter: click.Parameter, command: click.Command) -> dict[str, Any]:
    context = click.Context(command)
    choice = isinstance(parameter.type, click.Choice)
    return {
        "names": [*parameter.opts, *parameter.secondary_opts],
        "key": parameter.name,  # in em-circuits.toml and, with its command's words, EM_CIRCUITS_*
        "metavar": None if choice else parameter.make_metavar(context),
        "type": _type(parameter.type),
        "default": _plain(parameter.get_default(context, call=False)),
        "multiple": parameter.multiple,
        "required": parameter.required,
        "flag": isinstance(parameter, click.Option) and parameter.is_flag,
    }


def _type(kind: click.ParamType) -> Any:
    """What may be typed: the choices, the range, or a name."""
    if isinstance(kind, click.Choice):
        return list(kind.choices)
    return "Path" if isinstance(kind, click.Path) else repr(kind).replace("Finite", "Float")


def _plain(default: Any) -> Any:
    """A default as JSON: an option without one has None, whatever click calls that."""
    if default is None or "UNSET" in repr(default):
        return None
    if callable(default):
        return "computed"
    return list(default) if isinstance(default, tuple) else default


def test_every_option_of_the_first_edition_is_there_as_it_was() -> None:
    contract, now = json.loads(CONTRACT.read_text(encoding="utf-8")), parameters()
    assert set(contract) <= set(now)
    for command, options in contract.items():
        by_name = {tuple(option["names"]): option for option in now[command]}
        for option in options:
            found = by_name.get(tuple(option["names"]))
            assert found is not None, f"{command} {option['names']}"
            if isinstance(option["type"], list):  # words may be added to those of the contract
                assert set(option["type"]) <= set(found["type"])
                found = found | {"type": option["type"]}
            if option["type"] in ("INT", "FLOAT") and found["type"].startswith("<"):
                # A bound may be told: what it refuses was refused later, after models were loaded.
                found = found | {"type": option["type"], "metavar": option["metavar"]}
            if set(str(option["metavar"]).split("|")) <= set(str(found["metavar"]).split("|")):
                found = found | {"metavar": option["metavar"]}  # it takes more than it did
            if (option["default"], found["default"]) == WIDER.get(option["names"][0]):
                found = found | {"default": option["default"]}
            assert found == option, f"{command} {option['names']}"


def test_the_help_of_all_commands_says_of_each_what_its_own_says() -> None:
    context = click.Context(app)
    text = " ".join(app.get_help(context).split())
    for name in app.list_commands(context):
        command = app.get_command(context, name)
        assert command is not None
        assert f"{name} {command.get_short_help_str(limit=200)}" in text
