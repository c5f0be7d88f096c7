"""Texts of a graph's input tokens, from the tokenizer where the graph has none.

Where the tokenizer is not on this machine (a graph from elsewhere), an id is shown as ``#id``.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from em_circuits.graphs import AttributionGraph
from em_circuits.models.pair import load_tokenizer
from em_circuits.models.source import locate
from em_circuits.models.text import decode_token
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import EmCircuitsError

logger = logging.getLogger(__name__)


class TokenTexts:
    """Texts of token ids; safe to use from several threads."""

    def __init__(self, work: Workspace) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._tried = False

    def of(self, graph: AttributionGraph) -> list[str]:
        """A text for each input token, the beginning-of-sequence token included."""
        return [self._text(i) for i in graph.input_ids.tolist()]

    def _text(self, token_id: int) -> str:
        with self._lock:
            if not self._tried:
                self._tried = True
                self._tokenizer = self._load()
            if self._tokenizer is None or token_id >= len(self._tokenizer):
                return f"#{token_id}"
            return decode_token(self._tokenizer, token_id)

    def _load(self) -> Any:
        try:
            return load_tokenizer("--base", locate("--base", self._work.models.base, kind="model"))
        except EmCircuitsError as error:
            logger.warning("input tokens are shown by number: %s", error)
            return None
