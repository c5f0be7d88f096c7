"""When may the next request go, and how long is waited before another attempt?

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

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 8.0
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
UNCERTAIN = frozenset({408, 502, 504, 520, 522, 524})
"""A gateway's word about a model that it lost: the call may have been worked on, and billed."""


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
        """Let nothing go for so long."""
        until = asyncio.get_running_loop().time() + seconds
        self._paused_until = max(self._paused_until, until)


def jittered_wait(attempt: int, draw: random.Random) -> float:
    """Seconds to wait after attempt number `attempt`, from 0."""
    return draw.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that an endpoint asks to wait, or None: in milliseconds, seconds, or as a date."""
    milliseconds = headers.get("retry-after-ms", "")
    seconds = headers.get("retry-after", "")
    try:
        return max(0.0, float(milliseconds) / 1000 if milliseconds else float(seconds))
    except ValueError:
        pass
    if not seconds:
        return None
    try:
        return max(0.0, email.utils.parsedate_to_datetime(seconds).timestamp() - time.time())
    except ValueError:
        return None
