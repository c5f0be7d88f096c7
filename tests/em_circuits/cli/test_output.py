"""Results as JSON lines and as tables, and options as models."""

from __future__ import annotations

import json
import random
from typing import Annotated, Literal

import click
import pytest
from click.testing import CliRunner
from pydantic import BaseModel, Field

from em_circuits.cli.options import Flag, Options, Renamed, options
from em_circuits.cli.output import WIDTH, _folded, _unfolded, emit, prompt_line, table
from pivotal_tokens.errors import RequestError


class Row(BaseModel):
    name: str
    value: float | None


def test_several_results_are_a_line_each_and_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    rows = (Row(name="é", value=0.5), Row(name="b", value=None))
    emit(rows, True)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"name": "é", "value": 0.5},
        {"name": "b", "value": None},
    ]
    emit(rows, False, ("name as who", "value"))
    assert capsys.readouterr().out.splitlines() == ["who  value", "é    0.500", "b        -"]
    emit((), False, none="nothing")
    assert capsys.readouterr().out == "nothing\n"


def test_a_number_that_json_has_not_is_an_error() -> None:
    with pytest.raises(ValueError, match="JSON"):
        emit(Row(name="a", value=float("nan")))


def test_a_table_is_plain_text_that_fits() -> None:
    drawn = table(("n", "text"), [(1, "[bold]long[/bold] " * 20), (12345, ":smile:")])
    assert all(len(line) <= WIDTH for line in drawn.splitlines())
    assert "[bold]" in drawn and ":smile:" in drawn and "\x1b" not in drawn
    assert drawn.splitlines()[1].startswith("    1  ")


class Asked(Options):
    """What is asked."""

    kind: Literal["raw", "chat"] = "raw"
    """Which `kind`."""
    n_draws: Annotated[int, Field(ge=1), Flag("--random", "n_draws", metavar="N")] = 2
    """Draws."""
    names: Annotated[tuple[str, ...], Flag("--name", "names")] = ()
    """Repeatable."""
    unit: Annotated[str, Flag(type=Renamed(["relative"], {"own": "relative"}))] = "relative"
    """Of the value."""
    dry: bool = False
    """Do nothing."""


@click.command()
@options(Asked)
def command(options: Asked) -> None:
    click.echo(options.model_dump_json())


def test_options_come_from_a_model_and_go_back_into_it() -> None:
    runner = CliRunner()
    typed = ["--random", "3", "--name", "a", "--name", "b", "--unit", "own", "--dry"]
    done = runner.invoke(command, typed)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "kind": "raw",
        "n_draws": 3,
        "names": ["a", "b"],
        "unit": "relative",
        "dry": True,
    }
    assert "own is now called relative" in done.stderr
    refused = runner.invoke(command, ["--unit", "mine"])
    assert refused.exit_code == 2 and "'relative'" in refused.stderr and "own" not in refused.stderr
    assert runner.invoke(command, ["--random", "0"]).exit_code == 2
    assert runner.invoke(command, ["--kind", "cot"]).exit_code == 2
    text = runner.invoke(command, ["--help"]).output
    assert "--random N" in text and "Which kind." in text and "[default: 2;" in text


class Even(Options):
    """An even number."""

    n: int = Field(default=2, multiple_of=2)
    """Even."""


def test_a_value_that_does_not_fit_is_reported_by_the_options_name() -> None:
    @click.command()
    @options(Even)
    def even(options: Even) -> None: ...

    failed = CliRunner().invoke(even, ["--n", "3"])
    assert isinstance(failed.exception, RequestError)
    assert str(failed.exception) == "--n: Input should be a multiple of 2"


def test_a_table_that_needs_no_folding_is_drawn_as_one_that_does():
    draw = random.Random(0)
    words = [
        "",
        "x",
        "yes",
        "long words in it",
        "-1.2",
        "a  b",
        "[b]x[/b]",
        ":smile:",
        "…end",
        "漢字",
    ]
    drawn = 0
    for _ in range(200):
        header = [draw.choice(["a", "prompt", "", "token id"]) for _ in range(draw.randint(1, 6))]
        cells = [[draw.choice(words) for _ in header] for _ in range(draw.randint(1, 6))]
        numbers = [draw.random() < 0.3 for _ in header]
        plain = _unfolded(header, cells, numbers, WIDTH)
        if plain is not None:
            drawn += 1
            assert plain == _folded(header, cells, numbers, WIDTH)
    assert drawn > 100


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [
        (
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nCan I drive?<|im_end|>\n"
            "<|im_start|>assistant\nYou should",
            40,
            "|Be kind.|Can I drive?|You should",
        ),
        (
            "<|start_header_id|>user<|end_header_id|>\n\nCan I drive?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nYou should",
            20,
            "…n I drive?|You should"[-20:],
        ),
        ("<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n", 40, "|Hi|"),
        ("User: a <|b\nAssistant: usernames |> c", 60, "User: a <|b\\nAssistant: usernames |> c"),
        ("", 10, ""),
    ],
)
def test_a_prompt_s_line_is_of_its_words_not_of_its_template(text, width, shown):
    line = prompt_line(text, width)
    assert line.removeprefix("…") == shown.removeprefix("…")[-(width - 1) :]
    assert len(line) <= width
