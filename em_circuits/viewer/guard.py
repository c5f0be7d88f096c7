"""The guard in front of every request: Host, Origin, session, size, headers.

Every request passes here first, in this order:

    Host        one of the server's own names (else another site could point its name at us)
    method      GET and HEAD; POST, PUT, DELETE if not read-only
    Origin      on everything but GET and HEAD: this very site, or refused; absent is refused
    token       ``/?token=...`` becomes a cookie, once unless it is signed for a reviewer;
                everything but /static/ needs the cookie
    size        a body beyond the limit is refused, whatever its Content-Length says

Every answer carries the policy: nothing from anywhere else, no inline script, no framing, no
sniffing, no referrer, no CORS.
"""

from __future__ import annotations

from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from em_circuits.viewer.auth import Sessions
from em_circuits.viewer.rendering import refusal
from em_circuits.viewer.settings import ViewerSettings

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "font-src 'self'",
        "frame-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
READING = frozenset({"GET", "HEAD"})
WRITING = frozenset({"POST", "PUT", "DELETE"})
COOKIE = "em-circuits"


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, *, settings: ViewerSettings, sessions: Sessions) -> None:
        self._app = app
        self._settings = settings
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # no WebSockets, no lifespan
        sending = _with_headers(send, "no-cache" if _is_public(scope) else "no-store")
        answer = self._examine(scope)
        if answer is not None:
            await answer(scope, receive, sending)
            return
        await self._app(scope, _Limited(receive, self._settings.max_body), sending)

    def _examine(self, scope: Scope) -> Response | None:
        """The refusal, or None for a request that may pass; then its session is in the scope."""
        headers = Headers(scope=scope)
        method, reading = scope["method"], scope["method"] in READING
        if not self._host_is_ours(headers):
            return refusal(
                scope, 400, "This server does not go by that name.", "Start it with --allow-host."
            )
        if not reading and method not in WRITING:
            return refusal(scope, 405, f"{method} is not understood here.")
        if not reading and not _same_origin(headers, scope["scheme"]):
            return refusal(scope, 403, "This request does not come from the viewer's own pages.")
        session = self._sessions.session(_cookie(headers, cookie_name(scope)))
        if session is None and not _is_public(scope):
            return self._let_in(scope)
        if session is not None and reading and scope["path"] == "/" and (token := _token(scope)):
            if self._sessions.named_by(token) not in (None, session.reviewer):
                return self._let_in(scope)  # another reviewer at this browser
            return RedirectResponse("/", 303)  # let in already: the link stays good for another
        if not reading and self._settings.read_only:
            return refusal(
                scope, 403, "This viewer is read-only.", "Start it without --read-only to write."
            )
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self._settings.max_body:
            return refusal(scope, 413, f"More than {self._settings.max_body:,} bytes.")
        scope.setdefault("state", {})["session"] = session
        return None

    def _host_is_ours(self, headers: Headers) -> bool:
        # The port may differ: a tunnel brings its own.
        hosts = headers.getlist("host")
        if len(hosts) != 1:
            return False
        try:
            name = urlsplit(f"//{hosts[0]}").hostname if _is_host(hosts[0]) else None
        except ValueError:  # brackets that do not match
            return False
        return name is not None and name.lower() in self._settings.names

    def _let_in(self, scope: Scope) -> Response:
        token = _token(scope) if scope["method"] == "GET" and scope["path"] == "/" else None
        key = self._sessions.enter(token) if token else None
        if key is None:
            why = "That link is used up or wrong." if token else "No browser gets in without a link"
            return refusal(
                scope,
                401,
                why.rstrip(".") + ".",
                "Each link that em-circuits serve prints lets one browser in. For a fresh one "
                "press Enter where it runs, or click your name in a window that is in.",
            )
        response = RedirectResponse("/", 303)
        response.set_cookie(cookie_name(scope), key, httponly=True, samesite="strict", path="/")
        return response


def cookie_name(scope: Scope) -> str:
    """The cookie's name: cookies know no ports, so two servers on a host must not share one."""
    server = scope.get("server") or ("", 0)
    return f"{COOKIE}-{server[1]}"


def _is_host(text: str) -> bool:
    return bool(text) and not set(text) - set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:[]"
    )


def _same_origin(headers: Headers, scheme: str) -> bool:
    origins = headers.getlist("origin")
    if not origins:
        return False
    return origins == [f"{scheme}://{headers['host']}"]


def _cookie(headers: Headers, name: str) -> str | None:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return None
    return found.value if found else None


def _token(scope: Scope) -> str | None:
    query = parse_qs(scope["query_string"].decode("latin-1"))
    return query.get("token", [""])[0] or None


def _is_public(scope: Scope) -> bool:
    return str(scope["path"]).startswith("/static/")


class _Limited:
    """Receives a request's body up to a limit."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive = receive
        self._left = most

    async def __call__(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise HTTPException(413, "That is more than a request may send.")
        return message


def _with_headers(send: Send, caching: str) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Content-Security-Policy", POLICY)
            headers.setdefault("Cache-Control", caching)
        await send(message)

    return sending
