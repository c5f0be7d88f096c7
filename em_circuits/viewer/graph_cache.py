"""Which graphs are open, and what was computed of each?

A graph is read from its memory-mapped file, its influence on every logit computed once, and each
pruned view kept as the bytes that were sent; the graphs asked for last stay.

    opened = cache.opened(key)
    opened.contrast(labels)[node], opened.values[logit, node]
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from jaxtyping import Float64
from torch import Tensor

from em_circuits.contrast import Contrast
from em_circuits.graphs import AttributionGraph, GraphStore
from em_circuits.influence import Method, Targets, influence
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Label

OPEN_GRAPHS = 12
KEPT_VIEWS = 64

_Value = TypeVar("_Value")


@dataclass(frozen=True, eq=False)
class Opened:
    """A graph and the influence of each of its nodes on each of its logits."""

    graph: AttributionGraph
    method: Method
    """`total_effect`, or `signed_influence` where an activation is not positive."""
    values: Float64[Tensor, "logit node"]

    def seed(self, labels: Mapping[int, Label]) -> Targets | None:
        """The contrast evil minus safe; None where a side has no target."""
        try:
            return Targets.contrast(self.graph, Contrast.from_labels(labels))
        except RequestError:
            return None

    def contrast(self, labels: Mapping[int, Label]) -> Float64[Tensor, " node"] | None:
        """Influence of every node on the contrast; influence is linear in its target."""
        seed = self.seed(labels)
        return None if seed is None else (seed.weights @ self.values)[0]


class GraphCache:
    """Open graphs and what was made of them; safe to use from several threads."""

    def __init__(self, store: GraphStore) -> None:
        self._store = store
        self._opened: _Kept = _Kept(OPEN_GRAPHS)
        self._views: _Kept = _Kept(KEPT_VIEWS)

    def opened(self, key: str) -> Opened:
        """A graph with its influences.

        Raises:
            RequestError: If there is no such graph, or it keeps no edges.
            WorkFailed: If its file is broken.
        """
        # A graph that is built anew under its key has another file time.
        stamp = self._store.path(key).stat().st_mtime_ns
        found: Opened = self._opened.get((key, stamp), lambda: _open(self._store, key))
        return found

    def view(self, what: Hashable, make: Callable[[], bytes]) -> bytes:
        """The bytes of a view, made where they are not kept."""
        return self._views.get(what, make)


class _Kept:
    """The values asked for last; each is made once, whoever else waits for it."""

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
                made = make()
                with self._lock:
                    self._values[key] = made
                    while len(self._values) > self._most:
                        self._values.popitem(last=False)
            finally:
                with self._lock:
                    self._locks.pop(key, None)
            return made


def _open(store: GraphStore, key: str) -> Opened:
    graph = store.load(key)
    graph.require_edges()
    activations = graph.selected_activations
    positive = bool((activations.isfinite() & (activations > 0)).all())
    method = Method.TOTAL_EFFECT if positive else Method.SIGNED
    return Opened(graph, method, influence(graph, Targets.each(graph), method).values)
