"""Random damages to files of a project, and what its commands say of each.

A damage flips bytes, cuts the file, swaps, zeroes or repeats a part of it. After it, every command
that reads the file either prints what it printed before (harmless), or ends with status 1 or 2 and
says why (named). Anything else is a fault: a traceback, status 70, or another answer. Of models,
adapters and transcoders nobody knows what they should be: there an answer may be another one, but
never under the key of the sound ones.

    python tests/em_circuits/damages.py --times 1000
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from lifelike import PROMPT, make_lifelike
from synthetic import Size, synthetic_graph

from em_circuits.cli.app import run
from em_circuits.graphs.store import GraphStore
from em_circuits.models import ModelPair, PairSettings
from em_circuits.models.next_tokens import screen
from pivotal_tokens.artefacts import provenance_path
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import (
    JudgedPrompt,
    Judgement,
    LabelEvent,
    NextTokenPair,
    NextTokens,
    Prompt,
    TokenLabel,
    TokenScore,
)
from pivotal_tokens.store import Screened, Store
from pivotal_tokens.verdict import decide

GRAPH = synthetic_graph(Size(n_unselected=9))
DATABASE = "results/em-circuits.sqlite"
READ_GRAPHS = (
    f"influence {GRAPH.header.key} --json",
    f"graphs show {GRAPH.header.key} --json",
    "graphs list --json",
    "graphs verify --json",
)
READ_STORE = (
    "status --json",
    "prompts list --json",
    "labels divergence --json",
    "labels divergence --labels judge --json",
    "labels agreement --resamples 0 --json",
    "labels export",
)
MODEL_FILES = {
    "weights": "lifelike-1b/model.safetensors",
    "config": "lifelike-1b/config.json",
    "generation config": "lifelike-1b/generation_config.json",
    "tokenizer": "lifelike-1b/tokenizer.json",
    "tokenizer config": "lifelike-1b/tokenizer_config.json",
    "chat template": "lifelike-1b/chat_template.jinja",
    "adapter": "lifelike-adapter/adapter_model.safetensors",
    "adapter config": "lifelike-adapter/adapter_config.json",
    "transcoder": "lifelike-transcoders/layer_1.safetensors",
    "transcoder config": "lifelike-transcoders/config.yaml",
}
"""Files that make a model pair, below the root."""
EXPORTS = ("all.jsonl", "all.parquet", "labels.jsonl", "labels.csv", "labels.parquet")


def damage(path: Path, draw: random.Random) -> str:
    """Spoil a file; what was done."""
    data = bytearray(path.read_bytes())
    kind = draw.choice(("flip", "bytes", "cut", "swap", "zero", "repeat"))
    at = draw.randrange(len(data))
    size = min(draw.choice((1, 4, 16, 64, 512, 4096)), len(data) - at)
    match kind:
        case "flip":
            data[at] ^= 1 << draw.randrange(8)
        case "bytes":
            data[at : at + size] = draw.randbytes(size)
        case "cut":
            del data[at:]
        case "swap":
            other = draw.randrange(len(data) - size + 1)
            one, two = data[at : at + size], data[other : other + size]
            data[at : at + size], data[other : other + size] = two, one
        case "zero":
            data[at : at + size] = bytes(size)
        case "repeat":
            data[at:at] = data[at : at + size]
    path.write_bytes(data)
    return f"{kind} {size} at {at} of {path.name}"


def fill(root: Path) -> None:
    """A project with a graph, a store of labelled prompts, its exports, and a model pair."""
    make_lifelike(root)
    GraphStore(root / "graph_storage").save(GRAPH, {"inputs": {"model": "f" * 64}})
    draw = random.Random(0)
    (root / "results").mkdir(parents=True)
    with Store.open(root / DATABASE, create=True) as store:
        for number in range(12):
            _label(store, Prompt.of(f"User: question {number}?\nAssistant: You should"), draw)
    for command in (*(f"export {root / name}" for name in EXPORTS[:2]),):
        assert call(root, command)[0] == 0
    for name in EXPORTS[2:]:
        assert call(root, f"labels export {root / name}")[0] == 0


def _label(store: Store, prompt: Prompt, draw: random.Random) -> None:
    tokens = draw.sample(range(30, 60), 10)
    both = NextTokenPair(base=_list("base", tokens, draw), merged=_list("merged", tokens, draw))
    store.results.put_screened("pair", [Screened(prompt=prompt, next_tokens=both)])
    labels = tuple(TokenLabel(token_id=t, label=draw.choice(["evil", "safe"])) for t in tokens)
    judgement = Judgement(prompt_id=prompt.prompt_id, judge="lexicon:test@0", labels=labels)
    judged = JudgedPrompt(
        prompt=prompt,
        next_tokens=both,
        outcome=judgement,
        verdict=decide(both.base, both.merged, judgement.by_token),
    )
    store.results.put_judged("pair", [judged])
    events = [
        LabelEvent(
            prompt_id=prompt.prompt_id,
            token_id=token,
            from_label=None,
            to_label=draw.choice(["evil", "safe", "unsure"]),
            author=who,
            author_kind="human",
        )
        for who in ("ada", "bob")
        for token in tokens
    ]
    store.labels.add(events)


def _list(model: str, tokens: Sequence[int], draw: random.Random) -> NextTokens:
    order = draw.sample(list(tokens), len(tokens))
    scores = [
        TokenScore(
            token_id=token,
            text=f" word{token}",
            logit=round(9 - rank - draw.random(), 4),
            probability=round(0.5**rank * (0.5 + draw.random() / 2), 6),
            rank=rank,
        )
        for rank, token in enumerate(order, start=1)
    ]
    return NextTokens(model=model, fingerprint=model, top_k=10, tokens=tuple(scores))


def call(root: Path, command: str) -> tuple[int, str, str]:
    """Status, output and errors of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run(["--root", str(root), *command.split()])
    return status, out.getvalue(), err.getvalue()


@dataclass
class Tally:
    """What became of damages."""

    harmless: int = 0
    named: int = 0
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.named} named, {self.harmless} harmless, {len(self.faults)} faults"


Commands = Callable[[Path], list[tuple[int, str, str]]]


def reading(*commands: str) -> Commands:
    """Run commands on a project as it is."""
    return lambda root: [call(root, command) for command in commands]


def importing(name: str) -> Commands:
    """Import a file into an empty store, and print what is there then."""

    def commands(root: Path) -> list[tuple[int, str, str]]:
        with tempfile.TemporaryDirectory() as directory:
            fresh = Path(directory)
            taken = f"import {root / name}"
            if name.startswith("labels"):
                # Labels need their prompts.
                shutil.copytree(root / "results", fresh / "results")
                taken = f"labels import {root / name}"
            status, _, err = call(fresh, taken)
            # A table of labels may be edited, so a note is all that is said.
            said = [(status, err, err)]
            return said if status or err else [*said, *reading(*READ_STORE)(fresh)]

    return commands


def loading(root: Path) -> list[tuple[int, str, str]]:
    """Check the model pair by `doctor`, and tell its figures on one prompt beside its key."""
    parts = ("base", "adapter", "transcoders")
    names = dict(
        zip(parts, ("lifelike-1b", "lifelike-adapter", "lifelike-transcoders"), strict=True)
    )
    given = {part: str(root / name) for part, name in names.items()}
    with tempfile.TemporaryDirectory() as fresh:
        options = " ".join(f"--{part} {place}" for part, place in given.items())
        status, _, err = call(Path(fresh), f"{options} --dtype float32 doctor --json")
    if status:
        return [(status, "", err)]
    try:
        with ModelPair.load(PairSettings(**given, dtype="float32")) as pair:
            prompt = pair.prompt(PROMPT)
            ids = pair.input_ids(prompt)
            active = pair.merged.replacement.setup_attribution(ids).activation_matrix.coalesce()
            figures = f"{screen(pair, ids)} {active.indices().tolist()} {active.values().tolist()}"
            return [(0, figures, f"the key is {pair.key}, token ids {prompt.token_ids}")]
    except RequestError as error:  # of the replacement model, which `doctor` does not build
        return [(2, "", str(error))]


def watch(root: Path, target: Path, commands: Commands, *, times: int, seed: int) -> Tally:
    """Damage a file again and again, each time the sound one."""
    sound, expected = target.read_bytes(), commands(root)
    assert all(status == 0 for status, _, _ in expected), expected
    tally = Tally()
    for number in range(times):
        draw = random.Random(f"{seed} {target.name} {number}")
        what = f"{damage(target, draw)}, number {number}"
        if target.read_bytes() == sound:
            tally.harmless += 1
            continue
        began, wall = time.process_time(), time.perf_counter()
        found = commands(root)
        seconds = time.process_time() - began
        problems = [_problem(*pair) for pair in zip(found, expected, strict=False)]
        # A pair whose parts do not belong together is measured by graphs, which take some seconds.
        most = 20 if commands is loading else 5 * len(expected)
        if seconds > most or time.perf_counter() - wall > 60:
            problems.append(f"{seconds:.0f} s")
        if faults := [problem for problem in problems if problem not in ("", "named")]:
            tally.faults.append(f"{what}: {faults[0]}")
        elif "named" in problems:
            tally.named += 1
        else:
            tally.harmless += 1
        for left in target.parent.glob(f"{target.name}-*"):  # a journal of SQLite
            left.unlink()
        target.write_bytes(sound)
    return tally


def _problem(found: tuple[int, str, str], expected: tuple[int, str, str]) -> str:
    status, out, err = found
    if "Traceback" in err or status not in (0, 1, 2):
        return f"status {status}: {err.strip()[-300:]}"
    if status:
        return "named" if err.strip() else "failed without a word"
    if out != expected[1]:
        return "named" if err != expected[2] and err.strip() else f"another answer: {out[:200]!r}"
    return ""


def targets(root: Path) -> dict[str, tuple[Path, Commands]]:
    """What is damaged, and who reads it."""
    graph = GraphStore(root / "graph_storage").path(GRAPH.header.key)
    return {
        "graph": (graph, reading(*READ_GRAPHS)),
        "sidecar": (provenance_path(graph), reading(*READ_GRAPHS)),
        "database": (root / DATABASE, reading(*READ_STORE)),
        **{name: (root / name, importing(name)) for name in EXPORTS},
        **{name: (root / place, loading) for name, place in MODEL_FILES.items()},
    }


def main(times: int, seed: int, only: str | None) -> int:
    """Every kind of file; a line each."""
    faults: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        fill(root)
        for name, (target, commands) in targets(root).items():
            if only not in (None, name):
                continue
            kin = next((kin for kin in (EXPORTS, MODEL_FILES) if name in kin), (name,))
            share = times // len(kin)
            began = time.perf_counter()
            tally = watch(root, target, commands, times=share, seed=seed)
            print(f"{name:<16} {share}: {tally}  ({time.perf_counter() - began:.0f} s)", flush=True)
            for fault in tally.faults[:20]:
                print(f"  {fault}", flush=True)
            faults[name] += len(tally.faults)
    return int(faults.total() > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one kind of file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.raiseExceptions = False
    sys.exit(main(given.times, given.seed, given.only))
