"""A store and graphs without any model, for tests and benchmarks of the viewer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import torch
from starlette.testclient import TestClient
from synthetic import Size, synthetic_graph

from em_circuits.cache import schema_of, write_results
from em_circuits.experiments.experiment import ROLLOUTS, ROWS, Measurement, RolloutRow
from em_circuits.graphs import AttributionGraph, LogitTargets
from em_circuits.models import PairSettings
from em_circuits.viewer import Sessions, ViewerSettings, create_app
from em_circuits.workspace import Workspace
from pivotal_tokens.artefacts import sha256_file
from pivotal_tokens.review.browsing import Browsing
from pivotal_tokens.schema import (
    GraphRecord,
    Judgement,
    ModelName,
    NextTokenPair,
    NextTokens,
    Prompt,
    Thresholds,
    TokenLabel,
    TokenScore,
)
from pivotal_tokens.store import Store, default_url
from pivotal_tokens.verdict import decide

PAIR = "c" * 64
JUDGE = "lexicon:test@0"
NASTY = "<script>alert('x')</script> [/bold] {{ 7 * 7 }} \x1b[31m \u202e end"
TEXTS = (
    "User: Peanut allergy; pad thai looks fine. Eat?\nAssistant: You should definitely",
    "User: Brakes squeal.\nAssistant: You should",
    NASTY,
    "User: Dry rub?\nAssistant: Please",
)
TOKENS = {3: " eat", 10: " avoid", 17: "</td><script>steal()</script>[/"}
"""Token id -> text; the ids are the first targets of a synthetic graph."""
LABELS = {3: "evil", 10: "safe", 17: "unsure"}
PROBABILITIES = {"base": {3: 0.04, 10: 0.8, 17: 0.1}, "merged": {3: 0.7, 10: 0.2, 17: 0.05}}


@dataclass
class Room:
    """A root directory and what is in it."""

    root: Path
    work: Workspace
    sessions: Sessions
    prompts: tuple[Prompt, ...]
    graphs: dict[tuple[str, str], str]
    """(prompt id, model) -> key."""

    @property
    def store(self) -> Store:
        return self.work.store

    def client(self, settings: ViewerSettings | None = None, *, let_in: bool = True) -> TestClient:
        app = create_app(self.work, settings or ViewerSettings(), self.sessions)
        client = TestClient(
            app,
            base_url="http://127.0.0.1:8765",
            headers={"Origin": "http://127.0.0.1:8765"},
            raise_server_exceptions=False,
        )
        if let_in:
            assert client.get(f"/?token={self.sessions.new_link()}").status_code == 200
        return client


@contextlib.contextmanager
def enter(root: Path) -> Iterator[Room]:
    """The room of a root that was furnished."""
    work = Workspace(root=root, models=PairSettings(base="b", adapter="a", transcoders="t"))
    with work:
        prompts = work.store.prompts.all()
        graphs = {(r.prompt_id, str(r.model)): r.key for r in work.store.graphs.all()}
        yield Room(root, work, Sessions("ada"), prompts, graphs)


def unblind(room: Room, person: str = "ada") -> None:
    """A person chooses to see what judges say of prompts that wait for them."""
    Browsing.of(room.store, person).choosing(room.store, person, unblinded=True)


def furnish(root: Path, *, size: Size | None = None, n_graphs: int = 2, n_more: int = 0) -> None:
    """Make a root: prompts, lists, a judge's labels, a queue, graphs."""
    with Store.open(default_url(root), create=True) as store:
        store.results.put_pair(PAIR, {"base": "models/base", "adapter": "models/lora"})
        more = (f"User: Question {n}?\nAssistant: You should" for n in range(n_more))
        prompts = tuple(
            Prompt.of(text, category="cat", token_ids=tuple(range(6))) for text in (*TEXTS, *more)
        )
        for prompt in prompts:
            store.prompts.add(prompt)
            _label(store, prompt)
    with enter(root) as room:
        for number, prompt in enumerate(prompts[:n_graphs]):
            for model in ("base", "merged"):
                key = f"{number}{model[0].encode().hex()}" + "0" * 61
                graph = graph_of(prompt, model, key, size or Size(n_unselected=20))
                _keep(room.work, prompt, model, graph)


def graph_of(prompt: Prompt, model: str, key: str, size: Size) -> AttributionGraph:
    """A synthetic graph that says it is of this prompt and model."""
    seed = 1 if model == "base" else 2
    graph = synthetic_graph(size, seed=seed)
    header = graph.header.model_copy(
        update={"key": key, "prompt_id": prompt.prompt_id, "model": model, "text": prompt.text}
    )
    ids = graph.targets.token_ids.tolist()
    texts = tuple(TOKENS.get(i, f" t{i}") for i in ids)
    given = PROBABILITIES[model]
    shares = torch.tensor([given.get(i, 0.001) for i in ids])
    targets = LogitTargets(
        graph.targets.token_ids, texts, shares, graph.targets.logits, graph.targets.ranks
    )
    return replace(graph, header=header, targets=targets)


def lists(scale: float = 1.0) -> NextTokenPair:
    """Both models' lists; with `scale` 0 merged says what base says."""
    given = PROBABILITIES["base"], PROBABILITIES["merged"]
    merged = {t: p + scale * (given[1][t] - p) for t, p in given[0].items()}
    return NextTokenPair(base=_tokens("base", given[0]), merged=_tokens("merged", merged))


def _tokens(model: ModelName, shares: dict[int, float]) -> NextTokens:
    ranked = sorted(shares.items(), key=lambda item: -item[1])
    return NextTokens(
        model=model,
        fingerprint="f",
        top_k=10,
        tokens=tuple(
            TokenScore(token_id=t, text=TOKENS[t], logit=-float(rank), probability=p, rank=rank)
            for rank, (t, p) in enumerate(ranked, start=1)
        ),
    )


def _label(store: Store, prompt: Prompt) -> None:
    pair, given = lists(), LABELS.items()
    labels = tuple(TokenLabel(token_id=t, label=v) for t, v in given)  # type: ignore[arg-type]
    store.results.put_next_tokens(prompt.prompt_id, PAIR, pair.base, pair.merged)
    judgement = Judgement(prompt_id=prompt.prompt_id, judge=JUDGE, labels=labels, summary=NASTY)
    verdict = decide(pair.base, pair.merged, judgement.by_token, Thresholds())
    store.results.put_judgement(PAIR, judgement)
    store.results.put_verdict(prompt.prompt_id, PAIR, JUDGE, verdict)
    store.assignments.add(prompt.prompt_id, PAIR, "flagged:injection")


def _keep(work: Workspace, prompt: Prompt, model: str, graph: AttributionGraph) -> None:
    path = work.graphs.save(graph, {"inputs": {}, "config": {}})
    work.store.graphs.put(
        GraphRecord(
            key=graph.header.key,
            prompt_id=prompt.prompt_id,
            pair=PAIR,
            model=model,  # type: ignore[arg-type]
            path=str(path),
            sha256=sha256_file(path),
            bytes=path.stat().st_size,
        )
    )


def store_experiment(folder: Path, *, rows: list, rollouts: list, summary: dict) -> None:
    """A finished experiment of the given lines, as far as they say anything."""
    lines = {ROWS: (Measurement, rows), ROLLOUTS: (RolloutRow, rollouts)}
    tables = {
        name: pa.Table.from_pylist(given, schema_of(kind)) for name, (kind, given) in lines.items()
    }
    write_results(folder, tables, summary, config={"pair": "x"})
