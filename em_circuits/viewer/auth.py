"""Authentication: one-time links, and the sessions that they open.

A link with a token lets one browser in, once; from then on its cookie names a session that this
process keeps in memory. Another browser needs another link. Nothing of either is ever written.

    sessions = Sessions("ada")
    token = sessions.new_link()
    key = sessions.enter(token)      # None the second time
    sessions.session(key).reviewer   # "ada" until the person says another name
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from dataclasses import dataclass, field
from typing import Any

MAX_LINKS = 64
"""Links that wait to be used; a further one makes the oldest void."""
MAX_SESSIONS = 256
"""Browsers that are in; a further one puts the oldest out."""


@dataclass(eq=False)
class BrowserSession:
    """One browser that is in."""

    reviewer: str
    """Whose labels, pins and groups these are."""
    judge_shown_for: set[str] = field(default_factory=set)
    """Prompt ids whose judge's labels this browser has been shown."""
    shows_judge: bool = False
    """Whether they chose to see judges' labels of prompts that still wait for their answer."""


class Sessions:
    """Links and sessions of one server; safe to use from several threads."""

    def __init__(self, reviewer: str) -> None:
        self._reviewer = reviewer
        self._links: dict[bytes, None] = {}
        self._sessions: dict[bytes, BrowserSession] = {}
        self._lock = threading.Lock()

    def new_link(self) -> str:
        """A token that lets one browser in."""
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._links[_digest(token)] = None
            _keep(self._links, MAX_LINKS)
        return token

    def enter(self, token: str) -> str | None:
        """The key of a new session, or None if the token is unknown or was used before."""
        with self._lock:
            if self._links.pop(_digest(token), _ABSENT) is _ABSENT:
                return None
            key = secrets.token_urlsafe(32)
            self._sessions[_digest(key)] = BrowserSession(self._reviewer)
            _keep(self._sessions, MAX_SESSIONS)
            return key

    def session(self, key: str | None) -> BrowserSession | None:
        """The session a cookie names."""
        if not key:
            return None
        with self._lock:
            return self._sessions.get(_digest(key))


_ABSENT = object()


def _digest(text: str) -> bytes:
    # Looking up the hash takes as long for a nearly right token as for a wrong one.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _keep(entries: dict[bytes, Any], most: int) -> None:
    while len(entries) > most:
        del entries[next(iter(entries))]
