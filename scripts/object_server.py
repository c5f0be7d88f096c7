"""A real object store on this machine, for tests and benchmarks: SeaweedFS, from its wheel.

with object_server() as bucket:  # s3://BUCKET; AWS_* in the environment name the server
    artefact_root(f"{bucket}/run")
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECRET = "canary/+9f3A7c512xQ"
_SECONDS = 120.0


@contextmanager
def object_server() -> Iterator[str]:
    """A server with data of its own, stopped and removed at the end.

    Raises:
        TimeoutError: If it does not come up.
    """
    named = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "local"}
    before = {name: os.environ.get(name) for name in (*named, "AWS_ENDPOINT_URL")}
    with tempfile.TemporaryDirectory(prefix="s3-") as folder:
        place = Path(folder)
        # Its own defaults are fixed ports, of which it opens a dozen.
        parts = ("master", "volume", "filer", "s3")
        names = [f"{part}.port{kind}" for part in parts for kind in ("", ".grpc")]
        ports = dict(zip(names, _free_ports(len(names)), strict=True))
        credentials = [{"accessKey": "tests", "secretKey": SECRET}]
        who = {"name": "tests", "credentials": credentials, "actions": ["Admin"]}
        (place / "s3.json").write_text(json.dumps({"identities": [who]}))
        flags = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={place}", "-s3"]
        flags += [f"-{name}={port}" for name, port in ports.items()]
        flags += [f"-s3.config={place / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        flags += ["-master.telemetry=false", "-master.volumeSizeLimitMB=512", "-volume.max=20"]
        flags += [f"-{part}.localSocket={place / part}.sock" for part in ("filer", "s3")]
        server = subprocess.Popen(
            [_program(), "server", *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.environ |= {**named, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3.port']}"}
        try:
            _wait(server)
            yield "s3://tests"
        finally:
            server.kill()  # asked to end, it takes half a minute
            server.wait()
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


def _program() -> Path:
    return Path(sys.executable).with_name("weed")


def _free_ports(n: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    found = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return found


def _wait(server: subprocess.Popen) -> None:
    """Until an object can be written; the server makes its bucket by that."""
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    store = S3Store("tests", client_options={"allow_http": True}, retry_config={"max_retries": 0})
    end = time.monotonic() + _SECONDS
    while True:
        try:
            store.put("ready", b"ready")
            return
        except (BaseError, OSError) as error:
            if server.poll() is not None or time.monotonic() > end:
                raise TimeoutError(f"the object server does not answer: {error}") from error
        time.sleep(0.1)
