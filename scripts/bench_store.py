"""Benchmark of reading commands on a store of 100,000 prompts and 1,000,000 label events.

Every prompt has next tokens of both models and stands in the queue; a judge labelled half of them,
two people a quarter each, both the same, so that every token of theirs can be compared.

python scripts/bench_store.py --prompts 100000
"""

from __future__ import annotations

import contextlib
import io
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench_queue import fill
from measure import Row, benchmark
from rooms import Room
from sqlalchemy import insert, select

from em_circuits.cli.app import run
from em_circuits.cli.options import Options
from em_circuits.models.settings import PairSettings
from em_circuits.viewer import Sessions
from em_circuits.workspace import Workspace
from pivotal_tokens.schema import LabelEvent, Prompt
from pivotal_tokens.store import Store, tables
from pivotal_tokens.store.chain import append
from pivotal_tokens.store.rows import row_of

TOKENS = range(1, 11)
LABELS = ("evil", "safe", "safe", "unsure")
COMMANDS = (
    ("status", 1000),
    ("prompts list --limit 50", 2000),
    ("labels divergence", 10_000),
    ("labels agreement", 20_000),
)
"""Each command with the most milliseconds that it may take."""
PAGES = ("/", "/fragments/quality", "/prompts", "/prompts?verdict=injection", "/review", "/graphs")


class Plan(Options):
    """How large a store."""

    prompts: int = 100_000
    """Prompts; ten label events each on average."""
    store: str | None = None
    """File to keep the store in, and to use again. [default: in a temporary directory]"""
    postgresql: str | None = None
    """URL of an empty PostgreSQL database, to measure writing there as well."""


def label(store: Store, prompts: int) -> None:
    """Add a judge's and two people's events."""
    known = store.prompts.all()
    draw = random.Random(0)
    chosen = [("judge", "lexicon:bench@0", p) for p in known[: prompts // 2]]
    chosen += [("human", who, p) for p in known[: prompts // 4] for who in ("ada", "bob")]
    sample = LabelEvent(
        prompt_id="", token_id=0, from_label=None, to_label="safe", author="", author_kind="human"
    )
    with store.writing() as connection:
        for start in range(0, len(chosen), 10_000):
            rows = [
                _row(sample, kind, who, prompt.prompt_id, token, draw)
                for kind, who, prompt in chosen[start : start + 10_000]
                for token in TOKENS
            ]
            connection.execute(insert(tables.label_events), rows)


def _row(
    sample: LabelEvent, kind: Any, who: str, prompt: str, token: int, draw: random.Random
) -> dict[str, Any]:
    fields = {
        "event_id": f"{who}-{prompt}-{token}",
        "prompt_id": prompt,
        "token_id": token,
        "author": who,
        "author_kind": kind,
        "to_label": draw.choice(LABELS),
    }
    event = sample.model_copy(update=fields)
    return fields | {"purpose": "review", "payload": event.model_dump_json()}


@contextlib.contextmanager
def _place(plan: Plan) -> Iterator[Path]:
    if plan.store is not None:
        yield Path(plan.store)
        return
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory) / "bench.sqlite"


def measure(plan: Plan) -> list[Row]:
    """Fill a store, and run the commands on it, each as a user would."""
    with _place(plan) as path:
        url = f"sqlite:///{path.absolute()}"
        if not path.exists():
            with Store.open(url, create=True) as store:
                fill(store, plan.prompts)
                label(store, plan.prompts)
        with Store.open(url) as store, store.reading() as connection:
            events = connection.execute(select(tables.label_events.c.seq)).fetchall()
        rows = [Row("label events", None, len(events), "")]
        for command, most in COMMANDS:
            start = time.process_time()
            with contextlib.redirect_stdout(io.StringIO()):
                status = run(["--store", url, *command.split(), "--json"])
            if status:
                raise SystemExit(f"{command}: exit status {status}")
            rows.append(_row_of(command, start, most))
        urls = [f"{url}.written", *([plan.postgresql] if plan.postgresql else [])]
        return [*rows, *pages(url), *(row for one in urls for row in writing(one))]


def pages(url: str) -> list[Row]:
    """The viewer's pages on a store, asked for a second time: templates are compiled then."""
    with tempfile.TemporaryDirectory() as root:
        models = PairSettings(base="b", adapter="a", transcoders="t")
        with Workspace(root=Path(root), models=models, store_url=url) as work:
            first = work.store.prompts.ids()[0]
            client = Room(Path(root), work, Sessions("ada"), (), {}).client()
            rows = []
            for page in (*PAGES, f"/prompt/{first}"):
                assert client.get(page).status_code == 200, page
                start = time.process_time()
                assert client.get(page).status_code == 200
                rows.append(_row_of(page.replace(first, "ID"), start, 2000))
            return rows


def writing(url: str) -> list[Row]:
    """CPU time of this process for each label event, ten of a prompt at a time, as a reviewer's
    answer gives them: by `append`, and inserted without hashes."""
    with Store.open(url, create=True) as store:
        prompts = [Prompt.of(f"written {number}") for number in range(400)]
        store.prompts.add_all(prompts)
        rows = []
        for what, half in (("with its hash", prompts[::2]), ("without", prompts[1::2])):
            answers = [
                [
                    LabelEvent(
                        prompt_id=prompt.prompt_id,
                        token_id=token,
                        from_label=None,
                        to_label="safe",
                        author="ada",
                        author_kind="human",
                    )
                    for token in TOKENS
                ]
                for prompt in half
            ]
            with store.writing() as connection:
                start = time.process_time()
                for events in answers:
                    if what == "without":
                        plain = [row_of(tables.label_events, event) for event in events]
                        connection.execute(insert(tables.label_events), plain)
                    else:
                        append(connection, events)
                each = (time.process_time() - start) / len(half) / len(TOKENS)
            name = f"label event written {what}, {url.partition(':')[0]}"
            rows.append(Row(name, None, 1e6 * each, "us of a CPU"))
        return rows


def _row_of(what: str, start: float, most: int) -> Row:
    milliseconds = 1e3 * (time.process_time() - start)
    return Row(what, None, milliseconds, "ms of a CPU", at_most=most)


if __name__ == "__main__":
    benchmark(Plan, measure, __doc__)
