"""A command run until it has written to a file, then killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# The process watches the file itself: however busy the machine is, it is killed soon after.
_WATCHED = """
import os, signal, sys, threading, time
path = sys.argv.pop(1)

def watch():
    while not (os.path.isfile(path) and b"\\n" in open(path, "rb").read()):
        time.sleep(0.002)
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=watch, daemon=True).start()
from em_circuits.cli import main
main()
"""


def kill_once_written(arguments: Sequence[str], path: Path, cwd: Path) -> str:
    """Run ``em-circuits`` until `path` has a whole line, kill it, and give what `path` has.

    Args:
        arguments: Of the command line.
        path: The file that it writes to.
        cwd: Where it runs.
    """
    run = subprocess.run(
        [sys.executable, "-c", _WATCHED, str(path), *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    assert run.returncode == -signal.SIGKILL
    return path.read_text()
