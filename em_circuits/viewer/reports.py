"""Reports and figures under the results folder, shown in a sandbox.

A report is a self-contained page with scripts of its own. It is shown in a frame whose policy makes
it a stranger: no cookie, no request, no way to the viewer's pages, whatever stands in it.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from html import unescape
from pathlib import Path
from urllib.parse import quote

from markdown_it import MarkdownIt
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route

from em_circuits.viewer.context import AppContext
from em_circuits.viewer.rendering import shown as shown_text
from pivotal_tokens.errors import RequestError

PAGES = (".html", ".htm")
TEXTS = (".json", ".md", ".txt", ".yaml", ".csv")
IMAGES = (".png",)
MOST_FILES = 500
CACHES = ("neuronpedia",)
"""Folders of the results with a file for every feature that was looked up: no reports."""
LARGEST_TEXT = 2 << 20
LARGEST_TREE = 512 << 10
"""Bytes of a JSON file that is shown folded; a larger one is shown as text."""
STRANGER = "; ".join(
    (
        "sandbox allow-scripts",
        "default-src 'none'",
        "script-src 'unsafe-inline'",
        "style-src 'unsafe-inline'",
        "img-src data: blob:",
        "font-src data:",
        "frame-ancestors 'self'",
    )
)
"""Policy of a report: it may draw itself and nothing else."""


@dataclass(frozen=True)
class Report:
    """One file."""

    path: str  # below the results
    bytes: int
    at: datetime
    title: str = ""  # of a page

    @property
    def link(self) -> str:
        """Its page."""
        return f"/report/{quote(self.path)}"

    @property
    def kind(self) -> str:
        """``page``, ``image`` or ``text``."""
        suffix = Path(self.path).suffix.lower()
        return "page" if suffix in PAGES else "image" if suffix in IMAGES else "text"


def routes(context: AppContext) -> list[BaseRoute]:
    """The list, a report's page, and its file."""

    def listing(request: Request) -> Response:
        found = reports(context.work.results)
        pages = [r for r in found if r.kind != "text"]
        return context.page(
            request, "reports.html", pages=pages, texts=[r for r in found if r.kind == "text"]
        )

    def shown(request: Request) -> Response:
        path = contained(context.work.results, request.path_params["path"])
        report = _report(path, context.work.results.resolve())
        text = value = formatted = None
        if report.kind == "text":
            with path.open("rb") as stream:
                text = stream.read(LARGEST_TEXT).decode("utf-8", "replace")
            if path.suffix.lower() == ".md":
                formatted = _markdown(text)
            elif path.suffix.lower() == ".json" and report.bytes <= LARGEST_TREE:
                with contextlib.suppress(ValueError, RecursionError):
                    value = json.loads(text)
        return context.page(
            request, "report.html", report=report, text=text, value=value, formatted=formatted
        )

    def raw(request: Request) -> Response:
        path = contained(context.work.results, request.path_params["path"])
        kind = {".png": "image/png"}.get(path.suffix.lower())
        if path.suffix.lower() in PAGES:
            kind = "text/html"
        return FileResponse(
            path,
            media_type=kind or "text/plain; charset=utf-8",
            headers={"Content-Security-Policy": STRANGER},
        )

    return [
        Route("/reports", listing, methods=["GET"]),
        Route("/report/{path:path}", shown, methods=["GET"]),
        Route("/raw/{path:path}", raw, methods=["GET"]),
    ]


def _markdown(text: str) -> Markup:
    """Markdown as inert HTML: no raw HTML, no picture from elsewhere."""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    return Markup(reader.render(shown_text(text)))


def reports(root: Path) -> list[Report]:
    """Files worth reading under a root, the newest first; links out of it are none."""
    inside = root.resolve()
    found = []
    for path in _files(root)[: 40 * MOST_FILES]:
        suffix = path.suffix.lower()
        if suffix not in (*PAGES, *TEXTS, *IMAGES) or path.name.endswith(".provenance.json"):
            continue
        real = path.resolve()
        if path.is_file() and real.is_relative_to(inside):
            found.append(_report(real, inside))
    return sorted(found, key=lambda r: (-r.at.timestamp(), r.path))[:MOST_FILES]


def _files(root: Path) -> list[Path]:
    top = [path for path in sorted(root.glob("*")) if path.name not in CACHES]
    below = {one: sorted(one.rglob("*")) for one in top if not one.is_symlink()}
    return [path for one in top for path in (one, *below.get(one, ()))]


def contained(root: Path, wanted: str) -> Path:
    """The file that is meant, if it is a report below the root.

    Raises:
        RequestError: If it is not, by whatever spelling or link.
    """
    try:
        path = (root / wanted).resolve()
        good = path.is_relative_to(root.resolve()) and path.is_file()
    except (ValueError, OSError):
        good = False
    if not good or path.suffix.lower() not in (*PAGES, *TEXTS, *IMAGES):
        raise RequestError(f"there is no report {wanted[:60]!r}")
    return path


def _report(path: Path, root: Path) -> Report:
    about = path.stat()
    when = datetime.fromtimestamp(about.st_mtime, UTC)
    return Report(path.relative_to(root).as_posix(), about.st_size, when, _title(path))


def _title(path: Path) -> str:
    """What a page calls itself in its first bytes; empty for anything else."""
    if path.suffix.lower() not in PAGES:
        return ""
    with path.open("rb") as stream:
        head = stream.read(2048).decode("utf-8", "replace")
    found = re.search(r"<title>([^<]{1,200})</title>", head)
    return unescape(found[1]).strip() if found else ""
