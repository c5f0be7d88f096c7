"""Events of a run, a JSON object a line.

    with EventLog.open(work.results, run="4f1c...") as events:
        events.add("judged", prompt_id="44a71bc74c37", verdict="injection")

Appended and flushed at once, so that a kill loses nothing that was logged: ``{"at", "run",
"event", ...}`` under ``results/events/RUN.jsonl``. Prompts stand there by id only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal

from pivotal_tokens.artefacts import canonical_json
from pivotal_tokens.schema import Frozen

Event = Literal[
    "start", "generated", "screened", "judged", "finished", "failed", "filtered", "unit", "stop"
]


class EventLog:
    """An open log."""

    def __init__(self, path: Path, run: str, stream: IO[str]) -> None:
        self.path = path
        self._run, self._stream = run, stream

    @classmethod
    def open(cls, results: Path, *, run: str) -> EventLog:
        """Open the log of a run, going on where it ended."""
        path = events_dir(results) / f"{run}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        return cls(path, run, path.open("a", encoding="utf-8"))

    def add(self, event: Event, **fields: Any) -> None:
        """Append one event."""
        record = {"at": datetime.now(UTC).isoformat(), "run": self._run, "event": event, **fields}
        self._stream.write(canonical_json(record) + "\n")
        self._stream.flush()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream.close()


def events_dir(results: Path) -> Path:
    """Folder of a root's logs."""
    return results / "events"


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a log; a line that a kill cut off is left out."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except ValueError:
                continue


def latest_events(results: Path, n: int = 0) -> list[dict[str, Any]]:
    """The last `n` events, or all, of the log that was written to last."""
    logs = sorted(events_dir(results).glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
    return list(read_events(logs[-1]))[-n:] if logs else []


class WorkersState(Frozen):
    """How far the workers of a run are."""

    workers: tuple[int, ...]
    """Numbers of those that did something, or died."""
    done: int
    """Prompts, or pieces of a command."""
    left: int
    last_error: str | None

    @classmethod
    def of(cls, events: Sequence[dict[str, Any]]) -> WorkersState | None:
        """That of the newest start in a log; None where one process does everything."""
        starts = [i for i, event in enumerate(events) if event.get("event") == "start"]
        units = [one for one in events[starts[-1] if starts else 0 :] if one.get("event") == "unit"]
        if not units:
            return None
        last = units[-1]
        return cls(
            workers=tuple(sorted({one["worker"] for one in units})),
            done=last["done"],
            left=last["left"],
            last_error=last["error"],
        )
