"""Attempts over HTTP: the outcome of one, and the delay before the next.

Full jitter: attempt n waits a uniform draw from 0 to min(8 s, 0.5 s * 2^n), so that twenty calls
refused together do not come back together. What the endpoint asks for in Retry-After is waited out
in full, by every call of the client.
"""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from pivotal_tokens.llm.endpoint_errors import EndpointError, error_in

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 8.0
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
UNCERTAIN = frozenset({408, 502, 504, 520, 522, 524})
"""A gateway's word about a model that it lost: the call may have been worked on, and billed."""

Charge = Literal["unknown", "free"]
"""Of an attempt without a reply, as the ledger has it."""


@dataclass(frozen=True)
class Response:
    """A whole response, of any status."""

    status: int
    body: str
    headers: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def error(self) -> EndpointError | None:
        """What it says is wrong, also within a 200; None for a reply."""
        return error_in(self.status, self.body)

    @property
    def code(self) -> int:
        """The status, or that of the error within it."""
        return self.status if self.error is None else self.error.status

    @property
    def problem(self) -> str:
        """Why it is no reply, in one line."""
        inside = "" if self.code == self.status else f"{self.status} with error "
        said = "a reply" if self.error is None else self.error.message
        return f"the endpoint answered {inside}{self.code}: {said}"

    @property
    def charge(self) -> Charge:
        """What a response without a reply may have cost."""
        return "unknown" if self.status in UNCERTAIN else "free"

    @property
    def retry_after(self) -> float | None:
        """Seconds that the endpoint asks to wait: in milliseconds, seconds, or as a date."""
        milliseconds = self.headers.get("retry-after-ms", "")
        seconds = self.headers.get("retry-after", "")
        try:
            return max(0.0, float(milliseconds) / 1000 if milliseconds else float(seconds))
        except ValueError:
            pass
        try:
            date = email.utils.parsedate_to_datetime(seconds)
        except ValueError:
            return None
        return max(0.0, date.timestamp() - time.time())


@dataclass(frozen=True)
class Lost:
    """No whole response came."""

    problem: str
    sent: bool  # False only where no connection came about: nothing can have been charged
    final: bool = False  # the same would happen again
    retry_after: None = None

    @property
    def charge(self) -> Charge:
        """What it may have cost."""
        return "unknown" if self.sent else "free"


Attempt = Response | Lost


class Pace:
    """Requests per minute, evenly spaced, and pauses that an endpoint asked for."""

    def __init__(self, requests_per_minute: float | None) -> None:
        self._interval = 60 / requests_per_minute if requests_per_minute else 0.0
        self._next = 0.0
        self._paused_until = 0.0

    async def turn(self) -> None:
        """Wait for a turn."""
        loop = asyncio.get_running_loop()
        at = max(loop.time(), self._next)
        self._next = at + self._interval
        while (wait := max(at, self._paused_until) - loop.time()) > 0:
            await asyncio.sleep(wait)

    def pause(self, seconds: float) -> None:
        """Send nothing for so many seconds."""
        until = asyncio.get_running_loop().time() + seconds
        self._paused_until = max(self._paused_until, until)


def jittered_wait(attempt: int, draw: random.Random) -> float:
    """Seconds to wait after attempt number `attempt`, from 0."""
    return draw.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt))
