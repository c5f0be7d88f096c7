"""What else is in the review terminal: colours, the help page, spans as Textual shows them?

content([(("evil", "evil"),)])       # no markup is ever read
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from textual import events
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from pivotal_tokens.review.display import fit
from pivotal_tokens.review.keys import DEFAULTS, Action, keys_of
from pivotal_tokens.review.rubric import RUBRIC
from pivotal_tokens.review.screen import Line, Style

CSS = """
Screen { background: ansi_default; color: ansi_default; }
#header { height: 1; }
#item { height: 1fr; }
#message { height: auto; min-height: 1; }
#keys { height: 2; }
#line { height: 1; border: none; padding: 0; background: ansi_default; }
Pages { align: center middle; }
Pages > VerticalScroll { border: solid grey; padding: 0 1; background: ansi_default;
    scrollbar-size-vertical: 1; }
"""
_STYLES: Mapping[Style, str] = {
    "": "",
    "dim": "dim",
    "bold": "bold",
    "evil": "bold red",
    "safe": "bold green",
    "unsure": "bold yellow",
    "cursor": "bold reverse",
    "differs": "bold magenta",
}
_KEYS_WIDTH = 18
"""Cells of the keys' column on the help page."""


def content(lines: Sequence[Line]) -> Content:
    """Lines of spans as Textual shows them; their text stays text."""
    parts: list[Content] = []
    for number, line in enumerate(lines):
        if number:
            parts.append(Content("\n"))
        parts += [Content.styled(text, _STYLES[style]) for text, style in line if text]
    return Content("").join(parts)


def help_lines(keys: Mapping[str, Action], columns: int) -> list[Line]:
    """The rubric, then every key."""
    lines: list[Line] = [((line, ""),) for line in RUBRIC.splitlines()]
    lines += [(), (("Keys", "bold"),)]
    for action, about in DEFAULTS.items():
        names = fit(" ".join(keys_of(keys, action)), _KEYS_WIDTH)
        lines.append(((names, "bold"), (fit(about.does, columns - _KEYS_WIDTH), "")))
    return lines


class Pages(ModalScreen[None]):
    """Text to scroll through; any other key than the arrows closes it."""

    def __init__(self, title: str, lines: Sequence[Line]) -> None:
        super().__init__()
        self._title = title
        self._lines = lines

    def compose(self) -> ComposeResult:
        with VerticalScroll() as pages:
            pages.border_title = Content(self._title)
            pages.border_subtitle = Content("arrows scroll, any other key goes back")
            yield Static(content(self._lines), markup=False)

    def on_key(self, event: events.Key) -> None:
        if event.key not in ("up", "down", "pageup", "pagedown", "home", "end"):
            event.stop()
            event.prevent_default()
            self.dismiss()
