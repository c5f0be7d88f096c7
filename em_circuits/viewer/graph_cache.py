"""Cache of open graphs and their influences.

A graph is read from its memory-mapped file, its influence on every logit computed once, and each
drawing cached as the bytes that were sent; the graphs used most recently stay.

    opened = cache.opened(key)
    opened.contrast(labels)[node], opened.values[logit, node]
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from em_circuits.graphs import GraphStore
from em_circuits.influence.drawing import ScoredGraph

OPEN_GRAPHS = 12
RECENT_VIEWS = 64

_Value = TypeVar("_Value")


class GraphCache:
    """Open graphs and what was computed from them; safe to use from several threads."""

    def __init__(self, store: GraphStore) -> None:
        self._store = store
        self._opened: _Recent = _Recent(OPEN_GRAPHS)
        self._views: _Recent = _Recent(RECENT_VIEWS)

    def opened(self, key: str) -> ScoredGraph:
        """A graph with its influences.

        Raises:
            RequestError: If there is no such graph, or it keeps no edges.
            WorkFailed: If its file is broken.
        """
        # A graph that is built anew under its key has another file time.
        stamp = self._store.path(key).stat().st_mtime_ns
        found: ScoredGraph = self._opened.get(
            (key, stamp), lambda: ScoredGraph.of(self._store.load(key))
        )
        return found

    def view(self, what: Hashable, make: Callable[[], bytes]) -> bytes:
        """The bytes of a view, computed if not cached."""
        return self._views.get(what, make)


class _Recent:
    """Most recently used values; each is computed once, for all who wait for it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[Hashable, Any] = OrderedDict()
        self._locks: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], _Value]) -> _Value:
        with self._lock:
            making = self._locks.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._values:
                    self._values.move_to_end(key)
                    found: _Value = self._values[key]
                    return found
            try:
                value = make()
                with self._lock:
                    self._values[key] = value
                    while len(self._values) > self._most:
                        self._values.popitem(last=False)
            finally:
                with self._lock:
                    self._locks.pop(key, None)
            return value
