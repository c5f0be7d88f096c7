"""How does an experiment go on where it was killed?

Every finished piece of work is one line of JSON, flushed to the disk before the next begins. A line
that was cut off by the end of the process is dropped, and its piece done again.

    journal = Journal.open(folder, plan_record)
    if key not in journal: journal.add(key, {"rows": [...]})
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from pivotal_tokens.artefacts import canonical_json, content_key, write_atomic
from pivotal_tokens.errors import RequestError

PLAN, JOURNAL = "plan.yaml", "journal.jsonl"


class Journal:
    """What has been done of one plan, in one folder."""

    def __init__(self, path: Path, done: dict[str, dict[str, Any]]) -> None:
        self._path, self._done = path, done

    @classmethod
    def open(cls, folder: Path, record: Mapping[str, Any]) -> Journal:
        """Begin an experiment, or go on with it.

        Args:
            folder: Of the experiment.
            record: Everything its rows follow from.

        Raises:
            RequestError: If the folder holds an experiment of another record.
        """
        plan, path = folder / PLAN, folder / JOURNAL
        key = content_key(json.loads(canonical_json(record)))
        if plan.is_file():
            kept = yaml.safe_load(plan.read_text(encoding="utf-8"))
            if not isinstance(kept, dict) or kept.get("key") != key:
                raise RequestError(
                    f"{folder} holds an experiment with another plan, models or labels; "
                    "give this one another name, or remove the folder"
                )
        else:
            text = yaml.safe_dump({"key": key, **record}, sort_keys=False, allow_unicode=True)
            write_atomic(plan, text)
        done = _read(path)
        # A line cut off in the middle must not be continued by the next one.
        write_atomic(path, "".join(_line(key, value) for key, value in done.items()))
        return cls(path, done)

    def __contains__(self, key: str) -> bool:
        return key in self._done

    def __len__(self) -> int:
        return len(self._done)

    def add(self, key: str, value: dict[str, Any]) -> None:
        """Keep one finished piece of work."""
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(_line(key, value))
            stream.flush()
            os.fsync(stream.fileno())
        self._done[key] = json.loads(canonical_json(value))

    def values(self, keys: Mapping[str, Any] | list[str]) -> Iterator[dict[str, Any]]:
        """What was kept under the given keys, in their order."""
        return (self._done[key] for key in keys if key in self._done)


def _line(key: str, value: Mapping[str, Any]) -> str:
    return canonical_json({"key": key, "value": value}) + "\n"


def _read(path: Path) -> dict[str, dict[str, Any]]:
    done: dict[str, dict[str, Any]] = {}
    if not path.is_file():
        return done
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            done[entry["key"]] = entry["value"]
        except (ValueError, KeyError, TypeError):
            continue
    return done
