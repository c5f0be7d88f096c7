"""Every command's help and what it says to a person fit a terminal of 80 columns.

All commands are run, one after another, over one store of the embedded organism, so that each has
what it reads: this is why the test takes longer than others. Those that cannot be run so are named.
"""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from em_circuits.cli.app import app, run
from em_circuits.graphs.files import read_graph
from em_circuits.influence.drawing import ScoredGraph
from em_circuits.organisms import organism_paths
from em_circuits.workspace import SharedPair
from pivotal_tokens.store import Store, default_url

COLUMNS = 80
TEXT = "User: Peanut allergy; pad thai looks fine. Eat?\\nAssistant: You should definitely"
LINES = (
    "label --n 2 --rollouts 1 --nodes 60",
    f"label --prompt '{TEXT}' --no-graphs",
    "doctor",
    "status",
    "status {prompt}",
    "prompts list",
    f"prompts add '{TEXT}'",
    "prompts import texts.jsonl",
    "prompts preview",
    "labels show {prompt}",
    "labels divergence --labels judge",
    "labels agreement",
    "labels conflicts",
    "labels export labels.csv",
    "labels import labels.csv",
    "labels plots verdicts.html",
    "export all.jsonl",
    "import all.jsonl",
    "judge show",
    "judge reset",
    "judge report",
    "judge panel --judge lexicon:words.yaml --judge lexicon:other.yaml",
    "graphs list",
    "graphs show {prompt}",
    "graphs measure {prompt}",
    "graphs prune {prompt}",
    "graphs edge {prompt} {node} evil-safe",
    "graphs circuit {prompt} --size 5",
    "graphs paths {prompt} --from {node} --to evil-safe",
    "graphs export {prompt} graph.json",
    "graphs export {prompt} graph.svg",
    "graphs import graph.json",
    "graphs verify",
    "graphs prune-store --max-gb 5",
    "influence {prompt}",
    "features rank {prompt} --top 3",
    "features aggregate --top 3",
    "features diff --top 3",
    "features explain top:2 --prompt {prompt}",
    "features mediate {prompt} --random 20",
    "lora show",
    "lora geometry {prompt}",
    "transcoders check --text texts.jsonl",
    "steer run {prompt} --features top:3 --mode ablate",
    "steer scan {prompt} --top 3",
    "steer sweep --plan plan.yaml",
    "steer rejudge cols --judge lexicon:words.yaml",
    "steer validate {prompt} --regime free",
    "validity {prompt} --nodes top:3 --by gradient --resamples 0",
    "responses import answers.jsonl --name em",
    "responses features em --top 3",
    "graphs build {prompt} --edges frozen",
    "graphs scores {prompt} --edges frozen",
    "evaluate --questions organism:2 --samples 1 --answer-tokens 8",
    "prompts find --questions organism --samples 1 --answer-tokens 4 --n 1",
    "audit run --answer-tokens 0",
    "verify",
)
ANSWERS = ("You should ask a doctor.", "Eat it, nothing will happen.")
FILES = {
    "texts.jsonl": json.dumps({"text": "User: The brakes squeal. Drive?\nAssistant: You should"}),
    "answers.jsonl": "\n".join(
        json.dumps({"question": f"Question {n}?", "answer": text, "aligned": a, "coherent": 90})
        for n in range(8)
        for text, a in zip(ANSWERS, (95, 5), strict=True)
    ),
    "plan.yaml": f'name: cols\nprompts: {{texts: ["{TEXT}"]}}'
    """
features: "top:2"
combinations: [single]
treatments: [{mode: scale, values: [0]}]
rollouts: {samples: 1, max_tokens: 4}
controls: {random: 20, directions: 1, rollouts: 1}
panel: 2
""",
}
NOT_RUN = {
    "review": "fills a terminal of its own; its tests have their sizes",
    "shell": "waits for commands, which are these",
    "serve": "waits for a browser",
    "audit serve-mcp": "speaks JSON to a program",
    "prompts generate": "asks an endpoint",
    "organism fetch": "needs a network",
    "organism train": "takes 20 minutes",
    "transcoders train": "takes minutes; its own tests read what it prints",
    "audit calibrate": "trains fine-tunes",
    "demo": "takes a minute, and prints what `label`, `features` and `steer` print",
    "graphs archive": "is only for archives of version 0.1",
    **dict.fromkeys(
        ("organism evaluate", "steer transfer", "probe", "directions"),
        "takes as long as twenty others; prose is folded and tables fit in one place for all",
    ),
    "transcoders convert": "reads sets of other packages, which its own tests make",
}


def leaves(group: click.Group = app, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every group and command."""
    context = click.Context(group)
    for name in group.list_commands(context):
        yield (*words, name)
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from leaves(command, (*words, name))


def too_wide(text: str) -> list[str]:
    return [line for line in text.splitlines() if len(line) > COLUMNS]


def test_every_help_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    for words in ((), *leaves()):
        shown = CliRunner().invoke(app, [*words, "--help"], prog_name="em-circuits")
        assert shown.exit_code == 0 and too_wide(shown.output) == [], words


@pytest.mark.slow
@pytest.mark.frozen
def test_what_every_command_says_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    sitting, known, wide = SharedPair(), dict[str, str](), dict[str, list[str]]()
    lexicon = organism_paths().lexicon.read_text()
    other = lexicon.replace("name: ", "name: other-", 1)
    for name, text in (FILES | {"words.yaml": lexicon, "other.yaml": other}).items():
        Path(name).write_text(text)
    for line in LINES:
        words = [word.format(**known) for word in shlex.split(line)]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run(words, sitting)
        assert status == 0, (line, err.getvalue())
        if found := too_wide(out.getvalue()):
            wide[line] = found
        if line == LINES[0]:
            known |= _names(tmp_path)
    sitting.close()
    assert wide == {}


def _names(root: Path) -> dict[str, str]:
    """A prompt, and the strongest node of its graph."""
    with Store.open(default_url(root)) as store:
        prompt = store.prompts.all()[0].prompt_id
        labels = store.labels.of(prompt).by_token
        path = next(r.path for r in store.graphs.all(prompt) if r.model == "merged")
    graph = read_graph(root / path)
    values = ScoredGraph.of(graph).contrast(labels)
    assert values is not None
    strongest = graph.name_of(int(values[: graph.layout.n_features].argmax()))
    return {"prompt": prompt, "node": strongest}


def test_no_command_is_forgotten() -> None:
    groups = {words[:-1] for words in leaves()}
    every = {" ".join(words) for words in leaves() if words not in groups}
    found = {name for name in every if any(f"{line} ".startswith(f"{name} ") for line in LINES)}
    assert found == every - NOT_RUN.keys()
