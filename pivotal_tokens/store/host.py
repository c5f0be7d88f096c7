"""Host of an SQLite store: the one machine that may use it.

SQLite's locks hold within one running kernel; over a network file system two machines can each
believe that they have the file for themselves, and ruin it. So a store records its host, and
another one is refused

- on a network file system: until it takes the store over on purpose;
- on any other: while the recorded host was seen in the last ten minutes (a shared disk that does
  not say so), afterwards the file simply belongs to this machine.

A host is the same when the kernel's boot id or the host name is: neither a restarted container
with a new name nor a rebooted machine is another host. Taking over is
``--store 'sqlite:///PATH?host=take'``.

    require_same_host(marked(connection), this_host(now), path, take=False)
"""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection

from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen
from pivotal_tokens.store.address import TAKE
from pivotal_tokens.store.rows import meta

SEEN_SECONDS = 600.0
MARK_SECONDS = 60.0
"""How often a host that writes says that it is there."""
HOST = "host"
_NETWORK = ("nfs", "cifs", "smb", "ceph", "gluster", "lustre", "gpfs", "beegfs", "9p", "fuse.")


class Host(Frozen):
    """A machine, and when it used the store last."""

    boot_id: str
    name: str
    seen: float  # UTC seconds

    def same_machine(self, other: Host) -> bool:
        """Whether it is the same running kernel, or the same machine after a restart."""
        return self.name == other.name or (self.boot_id != "" and self.boot_id == other.boot_id)


def this_host(now: datetime) -> Host:
    """This machine, seen now."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot_id = ""
    return Host(boot_id=boot_id, name=socket.gethostname(), seen=now.timestamp())


def marked(connection: Connection) -> Host | None:
    """The host that a store records."""
    value = meta(connection, HOST)
    return None if value is None else Host.model_validate_json(value)


def require_same_host(recorded: Host | None, here: Host, path: Path, *, take: bool) -> bool:
    """Refuse a store that another machine uses.

    Returns:
        Whether this host has to be recorded.

    Raises:
        RequestError: If it is another machine's.
    """
    if recorded is None or take:
        return True
    if recorded.same_machine(here):
        return here.seen - recorded.seen >= MARK_SECONDS or recorded.boot_id != here.boot_id
    if not on_network(path) and here.seen - recorded.seen >= SEEN_SECONDS:
        return True
    seen = datetime.fromtimestamp(recorded.seen, UTC)
    raise RequestError(
        f"{path} is used by host {recorded.name} (last at {seen:%F %H:%M} UTC), and SQLite must "
        "not be shared between hosts: use --store postgresql+psycopg://...,\n"
        f"or, if nothing runs there any more, --store 'sqlite:///{path}?host={TAKE}' once"
    )


def on_network(path: Path) -> bool:
    """Whether a file is on a file system that other machines may mount too."""
    kind, longest = "", -1
    whole = os.path.realpath(path)
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    for line in mounts.splitlines():
        _, place, found, *_ = line.split(" ")
        place = place.replace("\\040", " ")
        inside = whole == place or whole.startswith(place.rstrip("/") + "/")
        if inside and len(place) >= longest:
            kind, longest = found, len(place)
    return kind.startswith(_NETWORK)


def lock_holders(path: Path) -> list[str]:
    """Other processes of this machine that hold locks on an SQLite file, in words (Linux)."""
    inodes = {
        file.stat().st_ino
        for file in (path, Path(f"{path}-shm"))  # write-ahead logging locks in the second
        if file.exists()
    }
    try:
        locks = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    held = [line.split() for line in locks if "->" not in line]  # not those that wait
    pids = {int(fields[4]) for fields in held if int(fields[5].rpartition(":")[2]) in inodes} - {
        os.getpid()
    }
    return [f"process {pid}{_command(pid)}" for pid in sorted(pids) if pid > 0]


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    shown = ascii(b" ".join(words).decode("utf-8", "replace").strip()[-60:])[1:-1]
    return f" ({shown})" if shown else ""
