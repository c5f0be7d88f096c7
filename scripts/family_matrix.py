"""Every family of models through every figure and command; prints the matrices, writes a page.

    python scripts/family_matrix.py                    # docs/models.md between its two marks
    python scripts/family_matrix.py qwen2 gemma-3      # some families, nothing is written

Figures are those of `family_checks`: differences from plain Hugging Face. A command counts when it
ends with status 0 on a tiny pair of the family; a refusal is its own sentence, below the table.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import tiny_families
import torch
import yaml
from family_checks import LIMITS, differences
from tiny_families import PROMPT, RECIPES, MadeFamily, make_family

from em_circuits.cli.app import run
from em_circuits.models import ModelPair
from em_circuits.models.next_tokens import screen
from em_circuits.models.text import decode_token
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Prompt

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- make families: begin -->", "<!-- make families: end -->"
KINDS = (*tiny_families.KINDS, "none")
WITH_COMMANDS = ("own", "cross-layer", "none")
COMMANDS: dict[str, tuple[str, ...]] = {
    "doctor": ("doctor", "--deep"),
    "label": ("label", "--all-graphs", "--nodes", "40"),
    "build full": ("graphs", "build", "PROMPT", "--nodes", "50"),
    "build measured": ("graphs", "build", "PROMPT", "--edges", "measured", "--nodes", "20"),
    "build frozen": ("graphs", "build", "PROMPT", "--edges", "frozen"),
    "influence": ("influence", "PROMPT", "--targets", "evil-safe"),
    "rank": ("features", "rank", "PROMPT"),
    "steer": ("steer", "run", "PROMPT", "--features", "top:3", "--rollouts", "2"),
    "steer frozen_linear": (
        *("steer", "run", "PROMPT", "--features", "top:3", "--regime", "frozen_linear"),
    ),
    "mediate": ("features", "mediate", "PROMPT", "--heads"),
    "lora geometry": ("lora", "geometry", "PROMPT"),
    "graphs edge": ("graphs", "edge", "PROMPT", "token:5", "evil-safe"),
    "serve": ("serve", "--port", "0"),
}
"""Name -> what is typed."""
PAGES = ("", "prompts", "graphs", "features", "steering", "reports", "review")
PAGES += ("prompt/PROMPT", "graph/PROMPT", "api/graph/PROMPT", "api/graph/PROMPT/export")


@dataclass
class Row:
    """One family with one kind of transcoders."""

    family: str
    kind: str
    figures: dict[str, float | str] = field(default_factory=dict)
    commands: dict[str, str] = field(default_factory=dict)
    """Empty where a command ended well, else what it said."""


def main(names: list[str]) -> int:
    asked = [(name, kind) for name in names or RECIPES for kind in KINDS]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        rows = list(pool.map(_row, asked))
    text = page(rows)
    print(text)
    if not names:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{rest.partition(END)[2]}")
    return int(any(_failed(row) for row in rows))


def _row(asked: tuple[str, str]) -> Row:
    """One family with one kind of transcoders, in a process of its own."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    name, kind = asked
    with tempfile.TemporaryDirectory() as folder:
        made = make_family(Path(folder), name, kind=kind)
        row = Row(name, kind, _figures(made, kind))
        if kind in WITH_COMMANDS:
            row.commands = _commands(made, kind, Path(folder) / "root")
    print(_line(row), file=sys.stderr, flush=True)
    return row


def _figures(made: MadeFamily, kind: str) -> dict[str, float | str]:
    try:
        return differences(made, "none" if kind == "none" else "plt")
    except RequestError as refused:
        return {"refused": str(refused)}


def _commands(made: MadeFamily, kind: str, root: Path) -> dict[str, str]:
    settings = made.settings("none" if kind == "none" else "plt")
    typed = ["--root", str(root), "--base", settings.base, "--adapter", str(settings.adapter)]
    typed += ["--transcoders", settings.transcoders, "--max-context", "512"]
    try:
        prompt, words = _words(made, kind)
    except RequestError as refused:
        return dict.fromkeys(COMMANDS, str(refused))
    root.mkdir()
    lexicon = root / "lexicon.yaml"
    lexicon.write_text(
        yaml.safe_dump({"name": "tiny", "version": 1, "entries": [{"when": ".", **words}]})
    )
    prompt_id = Prompt.of(prompt).prompt_id
    found = {}
    for name, arguments in COMMANDS.items():
        more = [prompt_id if one == "PROMPT" else one for one in arguments]
        if name == "label":
            more += ["--prompt", prompt, "--judge", f"lexicon:{lexicon}"]
        act = partial(_viewed, prompt_id=prompt_id) if name == "serve" else _said
        found[name] = act([*typed, *more])
    return found


def _viewed(typed: list[str], prompt_id: str) -> str:
    """What `_said` says, of the viewer: a prompt is reviewed, pages are read, a feature ablated."""
    program = [sys.executable, "-m", "em_circuits", *typed]
    pipe = subprocess.PIPE
    with subprocess.Popen(program, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as server:
        assert server.stdout is not None
        address, _, token = server.stdout.readline().strip().partition("?")
        headers = {"Origin": address.rstrip("/")}
        try:
            with httpx.Client(base_url=address, headers=headers, timeout=300) as client:
                entered = client.get(f"?{token}").status_code == 303
                answers = [client.post("api/review", json={"do": "next"})]
                if asked := answers[0].json()["question"]:  # labels are hidden until it is answered
                    evil = {str(asked["missing"][0]): "evil"}
                    for more in ({"do": "label", "labels": evil}, {"do": "finish", "rest": "safe"}):
                        body = {**more, "item": asked["item"]}
                        answers.append(client.post("api/review", json=body))
                answers += [client.get(page.replace("PROMPT", prompt_id)) for page in PAGES]
                measure = f"api/graph/{prompt_id}/measure"
                answers.append(client.post(measure, json={"model": "merged"}))
        finally:
            server.send_signal(signal.SIGINT)
        _, err = server.communicate(timeout=60)
    bad = [f"{a.status_code} {a.url.path}" for a in answers if a.status_code != 200]
    if bad or not entered or server.returncode:
        return f"status 1: {bad} {server.returncode} {err[-300:]}"
    return ""


def _said(typed: list[str]) -> str:
    """Nothing if a command ends well, else its last line on standard error."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run(typed)
    except Exception as error:  # the rest of the matrix is worth having
        return f"traceback: {type(error).__name__}: {error}"
    lines = [line for line in err.getvalue().splitlines() if line.strip()]
    return "" if status == 0 else f"status {status}: {lines[-1] if lines else 'silent'}"


def _words(made: MadeFamily, kind: str) -> tuple[str, dict[str, list[str]]]:
    """A prompt after which whole words are likely, and which of them are to be evil and safe."""
    with ModelPair.load(made.settings("none" if kind == "none" else "plt")) as pair:
        starts = (PROMPT, *(PROMPT.replace("You", start) for start in ("We", "They", "I", "He")))
        for prompt in starts:
            listed = screen(pair, pair.input_ids(prompt)).merged.tokens
            texts = [decode_token(pair.tokenizer, one.token_id) for one in listed]
            words = [text[1:] for text in texts if text[:1] == " " and text[1:].isalpha()]
            if len(words) >= 2:
                return prompt, {"evil": words[:1], "safe": words[1:2]}
    raise RuntimeError(f"{made.name}: no prompt whose likely tokens are words")


def _failed(row: Row) -> bool:
    """Whether a figure is above its limit, doctor found something, or a command broke."""
    return (
        any(said.startswith(("traceback", "status 1")) for said in row.commands.values())
        or any(
            isinstance(value, float) and value > LIMITS.get(name, float("inf"))
            for name, value in row.figures.items()
        )
        or row.figures.get("doctor", "ok") != "ok"
    )


def _line(row: Row) -> str:
    """One row for people who wait."""
    bad = [f"{k}={v:.1e}" for k, v in row.figures.items() if k in LIMITS and _above(k, v)]
    refused = [name for name, said in row.commands.items() if said]
    largest = max((float(v) for k, v in row.figures.items() if k in LIMITS and _is(v)), default=0)
    figures = str(row.figures.get("refused") or f"largest difference {largest:.1e}")
    return f"{row.family:20} {row.kind:10} {figures} {bad or ''} {refused or ''}"


def _is(value: float | str) -> bool:
    return isinstance(value, float)


def _above(name: str, value: float | str) -> bool:
    return isinstance(value, float) and value > LIMITS[name]


def page(rows: list[Row]) -> str:
    """Both tables, and the refusals below them."""
    notes: list[str] = []

    def note(text: str) -> str:
        if text not in notes:
            notes.append(text)
        return f"[{notes.index(text) + 1}]"

    lines = ["### Differences from plain Hugging Face", ""]
    lines += _table(["family", "transcoders", *LIMITS], [_figure_cells(row, note) for row in rows])
    lines += ["", "### Commands that were run", ""]
    ran = [row for row in rows if row.commands]
    cells = [
        [row.family, row.kind, *(note(said) if said else "ok" for said in row.commands.values())]
        for row in ran
    ]
    lines += [*_table(["family", "transcoders", *COMMANDS], cells), ""]
    lines += [f"{i}. {text}" for i, text in enumerate(notes, 1)]
    return "\n".join(lines) + "\n"


def _figure_cells(row: Row, note: Callable[[str], str]) -> list[str]:
    if "refused" in row.figures:
        return [row.family, row.kind, *[note(str(row.figures["refused"]))] * len(LIMITS)]
    cells = [row.family, row.kind]
    for name in LIMITS:
        value = row.figures.get(name, "-")
        cells.append(
            value if value == "-" else note(value) if isinstance(value, str) else f"{value:.0e}"
        )
    return cells


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [" | ".join(head), " | ".join(["---"] * len(head)), *(" | ".join(r) for r in rows)]
    return [f"| {line} |" for line in lines]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
