"""Session names, by which one process can tell whether another still runs.

A session is HOST:PID:START:ID. It is over when this host has no such process, or one that began at
another moment and only got the same number. Of another host's sessions nothing is known.

    session_is_over(new_session())        # False
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from pivotal_tokens.schema import new_id


def new_session() -> str:
    """A name for this process, from which another can tell whether it still runs."""
    pid = os.getpid()
    return f"{socket.gethostname()}:{pid}:{_start(pid)}:{new_id()[:8]}"


def session_is_over(session: str) -> bool:
    """Whether the process of a session on this host is gone."""
    host, pid, start, *_ = [*session.split(":"), "", ""]
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    now = _start(int(pid))
    return start.isdigit() and now.isdigit() and start != now


def _start(pid: int) -> str:
    """When a process began, in ticks since this machine did; "" where the system does not say."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]
