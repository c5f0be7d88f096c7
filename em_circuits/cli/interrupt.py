"""What does Ctrl-C do to a long run?

The first asks it to stop after what is in flight; the second leaves at once. Both are safe: every
step is kept when it is done.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_on_interrupt() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; only the main thread can be interrupted."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def interrupted(_signal: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            os.write(2, b"\nem-circuits: left at once; what is done is kept\n")
            os._exit(130)
        stop.set()
        os.write(2, b"\nem-circuits: finishing what is in flight; Ctrl-C again leaves at once\n")

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield stop
    finally:
        sys.stderr.flush()
        signal.signal(signal.SIGINT, before)
