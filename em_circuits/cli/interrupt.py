"""Ctrl-C in a long run: the first ends it after what is in flight, a second one at once.

Both are safe: every step is stored when it is done. A scheduler's SIGTERM and a closed terminal's
SIGHUP do the same.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_on_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """Have the first Ctrl-C call `stop`; only the main thread can be interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupts = 0

    def interrupted(_signal: int, _frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts > 1:
            os.write(2, b"\nem-circuits: left at once; finished work is stored\n")
            os._exit(130)
        stop()
        os.write(2, b"\nem-circuits: finishing what is in flight; Ctrl-C again leaves at once\n")

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        sys.stderr.flush()
        signal.signal(signal.SIGINT, before)


def end_as_by_interrupt() -> None:
    """Have SIGTERM and SIGHUP do what Ctrl-C does, unless they are ignored (nohup)."""

    def ended(_signal: int, _frame: FrameType | None) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a job in the background
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.raise_signal(signal.SIGINT)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, ended)
