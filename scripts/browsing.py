"""Server of a test store, and a browser that records its complaints."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Iterator

import uvicorn
from rooms import Room

from em_circuits.viewer import ViewerSettings, create_app
from em_circuits.viewer.server import listening, url_of

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextlib.contextmanager
def opened_chromium() -> Iterator:
    """A browser of Playwright's, on the chromium of this machine."""
    from playwright.sync_api import sync_playwright

    executable = next(path for path in map(shutil.which, NAMES) if path)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        yield chromium
        chromium.close()


@contextlib.contextmanager
def running(room: Room, settings: ViewerSettings | None = None) -> Iterator[str]:
    """A server for a room on a free port; gives its address."""
    asked = settings or ViewerSettings(port=0)
    with listening(asked) as opened:
        app = create_app(room.work, asked, room.sessions)
        config = uvicorn.Config(app, log_level="warning", lifespan="off", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: server.run(sockets=[opened]), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield url_of(asked, opened)
        finally:
            server.should_exit = True
            thread.join(10)


class Browser:
    """A browser whose every complaint is kept: console errors, policy reports, foreign requests."""

    def __init__(self, browser, base: str) -> None:
        self._browser = browser
        self.base = base.rstrip("/")
        self.complaints: list[str] = []
        self.allowed: tuple[str, ...] = ()

    def window(self, room: Room, **options):
        """A window of a browser of its own that was let in."""
        context = self._browser.new_context(viewport={"width": 1280, "height": 800}, **options)
        context.add_init_script(
            "addEventListener('securitypolicyviolation', (e) =>"
            " console.error('policy: ' + e.violatedDirective + ' ' + e.blockedURI))"
        )
        page = context.new_page()
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("request", self._request)
        page.set_default_timeout(240_000)
        page.goto(f"{self.base}/?token={room.sessions.new_link()}")
        return page

    def _console(self, message) -> None:
        if "ERR_CONNECTION_REFUSED" in message.text:
            return  # the server is gone at the end of a test, the window is not yet
        if message.type == "error" and not any(text in message.text for text in self.allowed):
            self.complaints.append(f"console: {message.text}")

    def _request(self, request) -> None:
        if not request.url.startswith((self.base + "/", "data:", "blob:")):
            self.complaints.append(f"foreign: {request.url}")
