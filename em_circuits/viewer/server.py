"""The viewer's server: start and shutdown.

with listening(settings) as (sock, port): ...
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from em_circuits.viewer.settings import DEFAULT_PORT, ViewerSettings
from pivotal_tokens.errors import RequestError

BACKLOG = 128
GRACE_SECONDS = 2


@contextlib.contextmanager
def listening(settings: ViewerSettings) -> Iterator[socket.socket]:
    """A listening socket; another free port is taken where the default one is in use.

    Raises:
        RequestError: If the address is not this machine's, or a port that was asked for by number
            is taken.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    ports = [settings.port, 0] if settings.port == DEFAULT_PORT else [settings.port]
    with socket.socket(family, socket.SOCK_STREAM) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for port in ports:
            try:
                opened.bind((settings.host, port))
                opened.listen(BACKLOG)
            except OSError as error:
                if error.errno == errno.EADDRINUSE and port != ports[-1]:
                    continue
                raise _refused(settings, error) from error
            yield opened
            return


def url_of(settings: ViewerSettings, opened: socket.socket) -> str:
    """The URL a browser on this machine opens."""
    host, port = opened.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "127.0.0.1"
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def serve(app: ASGIApp, opened: socket.socket, *, ready: Callable[[], None]) -> None:
    """Answer until interrupted."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    server = uvicorn.Server(config)
    ready()
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[opened])


def _refused(settings: ViewerSettings, error: OSError) -> RequestError:
    if error.errno == errno.EADDRINUSE:
        return RequestError(
            f"--port {settings.port} is in use on {settings.host}; choose another, or 0 for any"
        )
    reason = error.strerror or str(error)
    return RequestError(f"--host {settings.host} --port {settings.port}: {reason}")
