"""Authentication: one-time links, signed links of reviewers, and the sessions that they open.

A link with a token lets one browser in, once; from then on its cookie names a session that this
process keeps in memory. Another browser needs another link. Where reviewers share a server, each
has a link of their own instead: it carries the name and its HMAC under a key of this process, lets
in as often as it is opened, and its sessions keep that name. Nothing of all that is ever written.

    sessions = Sessions("ada")
    token = sessions.new_link()
    key = sessions.enter(token)      # None the second time
    sessions.session(key).reviewer   # "ada" until the person says another name
    Sessions("", reviewers=("ada", "bob")).link_of("bob")
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import threading
from collections.abc import Sequence
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
    signed: bool = False
    """Whether the link says so: then no other name can be taken."""
    judge_shown_for: set[str] = field(default_factory=set)
    """Prompt ids whose judge's labels this browser has been shown."""


class Sessions:
    """Links and sessions of one server; safe to use from several threads."""

    def __init__(self, reviewer: str, *, reviewers: Sequence[str] = ()) -> None:
        """A server of one person; or of `reviewers`, whom only their signed links let in."""
        self._reviewer = reviewer
        self.reviewers = tuple(reviewers)
        self._key = secrets.token_bytes(32)
        self._links: dict[bytes, None] = {}
        self._sessions: dict[bytes, BrowserSession] = {}
        self._lock = threading.Lock()

    def link_of(self, reviewer: str) -> str:
        """The token of one of the reviewers."""
        name = base64.urlsafe_b64encode(reviewer.encode()).decode().rstrip("=")
        return f"{name}.{hmac.new(self._key, reviewer.encode(), hashlib.sha256).hexdigest()}"

    def named_by(self, token: str) -> str | None:
        """The reviewer whose signed token this is."""
        name, _, _ = token.partition(".")
        try:
            reviewer = base64.urlsafe_b64decode(name + "=" * (-len(name) % 4)).decode()
        except (binascii.Error, ValueError):
            return None
        if reviewer not in self.reviewers:
            return None
        same = hmac.compare_digest(
            token.encode("utf-8", "replace"), self.link_of(reviewer).encode()
        )
        return reviewer if same else None

    def new_link(self) -> str:
        """A token that lets one browser in."""
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._links[_digest(token)] = None
            _keep(self._links, MAX_LINKS)
        return token

    def enter(self, token: str) -> str | None:
        """The key of a new session, or None if the token is unknown or was used before."""
        named = self.named_by(token)
        with self._lock:
            if named is None and self._links.pop(_digest(token), _ABSENT) is _ABSENT:
                return None
            key = secrets.token_urlsafe(32)
            session = BrowserSession(named or self._reviewer, signed=named is not None)
            self._sessions[_digest(key)] = session
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
