"""How does a person label the queue on a whole terminal screen, with one key a token?

    run_terminal(ReviewSession(ReviewService(store, "ada")), key_map())

Works at 80 x 24, over ssh, without a mouse and without colour. `session.ReviewSession` does what
the keys say; this draws it. Everything shown is plain text from `screen.item_lines`: Textual's
markup is never read, so a model's text cannot be any.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from textual import events
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.content import Content
from textual.widgets import Input, Static

from pivotal_tokens.review.display import fit, visible, wrap_visible
from pivotal_tokens.review.keys import RESERVED, Action, keys_of
from pivotal_tokens.review.plain import PlainSummary
from pivotal_tokens.review.screen import (
    Line,
    item_lines,
    progress_line,
    prompt_lines,
    reveal_lines,
)
from pivotal_tokens.review.session import ReviewSession
from pivotal_tokens.review.terminal_parts import CSS, Pages, content, help_lines

POLL_SECONDS = 2.0
_CHROME_ROWS = 4  # header, message, two rows of keys
_REVEAL_ROWS = 5
_MESSAGE_ROWS = 3
_PAGE_MARGIN = 6  # border, padding, scroll bar
_LABEL_HINTS = {
    "evil": "evil",
    "safe": "safe",
    "unsure": "unsure",
    "leave": "leave",
    "rest_safe": "rest safe, done",
    "rest_unsure": "rest unsure",
}
_OTHER_HINTS = {
    "undo": "undo",
    "reject": "bad",
    "skip": "skip",
    "defer": "later",
    "note": "note",
    "command": "list",
    "help": "help",
    "quit": "quit",
}
_REVEALED_HINTS = {"rest_safe": "next item", "reason": "give a reason"}
_REVEAL_HINTS = {"agree": "take the judge's labels", "undo": "undo", "help": "help"}
_SHORT = {"backspace": "BkSp", "enter": "Enter"}


def run_terminal(session: ReviewSession, keys: Mapping[str, Action]) -> PlainSummary:
    """Show item after item until the person quits.

    Args:
        session: The sitting.
        keys: Key -> action, from `keys.key_map`.
    """
    app = ReviewTerminal(session, keys)
    try:
        app.run(mouse=False)
    finally:
        session.leave()
    return PlainSummary(session.counts["finished"], session.counts["rejected"])


class ReviewTerminal(App[None]):
    """The review screen."""

    CSS = CSS
    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = None
    BINDINGS: ClassVar[list[BindingType]] = []  # every key goes through `keys`

    def __init__(self, session: ReviewSession, keys: Mapping[str, Action]) -> None:
        super().__init__()
        self.session = session
        self._keys = keys
        self._progress = ""

    def compose(self) -> ComposeResult:
        yield Static(id="header", markup=False)
        yield Static(id="item", markup=False)
        yield Static(id="message", markup=False)
        yield Input(id="line", compact=True, select_on_focus=False)
        yield Static(id="keys", markup=False)

    def on_mount(self) -> None:
        self._line().display = False
        self.session.start()
        self.set_interval(POLL_SECONDS, self.poll)
        self.call_after_refresh(self.follow)

    def on_resize(self) -> None:
        self.draw()

    def poll(self) -> None:
        """Look for new items now and then."""
        if not isinstance(self.screen, Pages):
            self.session.poll()
            self.count()
            self.follow()

    # --- keys ----------------------------------------------------------------------------------

    def on_key(self, event: events.Key) -> None:
        if isinstance(self.screen, Pages):
            return
        action = self._keys.get(event.character or "") or self._keys.get(event.key)
        if self.session.asking is not None:
            if event.key == "escape":
                self.session.stop_asking()
            elif action == "agree" and not event.is_printable:
                self.session.stop_asking()
                self.session.act(action)
            else:
                return
        elif action is not None:
            self.session.act(action)
        elif event.character in RESERVED and self.session.view is not None:
            self.session.begin_command(event.character or "")
        else:
            return
        event.stop()
        event.prevent_default()
        self.follow()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.session.told(event.value)
        self.follow()

    async def action_quit(self) -> None:
        self.session.leave()
        self.exit()

    # --- what is on the screen -----------------------------------------------------------------

    def follow(self) -> None:
        """Bring the screen to where the session is."""
        session = self.session
        if session.over:
            self.exit()
            return
        self._follow_line()
        page, session.page = session.page, None
        if page == "help":
            self.push_screen(Pages("Help", help_lines(self._keys, self.size.width - _PAGE_MARGIN)))
        elif page == "prompt":
            self.push_screen(Pages("The prompt, as the model sees it", self._whole()))
        self.draw()
        self.call_after_refresh(self.count)  # the next item is there before everything is counted

    def count(self) -> None:
        """Say how far everything is."""
        progress = self.session.progress
        self._progress = progress_line(progress) if progress else ""
        self.draw()

    def draw(self) -> None:
        """Draw everything anew."""
        columns, rows = self.size.width, self.size.height
        if not columns or self.session.over:
            return
        hints: list[Line] = [((fit(line, columns), "dim"),) for line in self._footer()]
        message: list[Line] = [((line, "bold"),) for line in self._message(columns)]
        self._static("#header").update(self._header(columns))
        self._static("#item").update(content(self._body(columns, rows)))
        self._static("#message").update(content(message))
        self._static("#keys").update(content(hints))

    def _follow_line(self) -> None:
        asking, line = self.session.asking, self._line()
        if asking is None:
            if line.display:
                line.value = ""
                line.display = False
                self.set_focus(None)
        elif not line.display:
            line.placeholder = asking.asks
            line.value = self.session.begun
            line.display = True
            line.focus()
            line.cursor_position = len(line.value)

    def _header(self, columns: int) -> Content:
        session = self.session
        prompt = session.view.question.prompt if session.view else None
        right = f"prompt {prompt.prompt_id} ({prompt.kind})" if prompt else ""
        room = max(columns - len(right), 1)
        return Content.styled(fit(fit(self._progress, room) + right, columns), "bold")

    def _body(self, columns: int, rows: int) -> list[Line]:
        view = self.session.view
        room = rows - _CHROME_ROWS - (1 if self.session.asking else 0)
        room -= len(self._message(columns)) - 1
        if view is None:
            waiting = self.session.progress.waiting if self.session.progress else 0
            others = f" that your filters let through; {waiting} others do" if waiting else ""
            return [((f"Nothing waits for review{others}.", "bold"),), (), ((self._put_off(), ""),)]
        if view.reveal is None:
            return item_lines(view, columns, room)
        told = reveal_lines(view.reveal, columns, _REVEAL_ROWS)
        return [*item_lines(view, columns, room - len(told)), *told]

    def _message(self, columns: int) -> list[str]:
        """What is said, in a row or two."""
        return wrap_visible(self.session.message, columns)[:_MESSAGE_ROWS]

    def _put_off(self) -> str:
        states = self.session.progress.states if self.session.progress else {}
        parts = [
            f"{states[state]} {state}" for state in ("deferred", "skipped") if states.get(state)
        ]
        said = f"{', '.join(parts)} (--skipped asks skipped ones again). " if parts else ""
        return f"{said}New items appear here by themselves."

    def _whole(self) -> list[Line]:
        view = self.session.view
        assert view is not None
        columns = self.size.width - _PAGE_MARGIN
        lines = prompt_lines(view, columns)
        if view.at is not None:
            token = visible(view.at.text)
            lines += [(), (("The token under the cursor:", "dim"),)]
            lines += [((token[i : i + columns], ""),) for i in range(0, len(token), columns)]
        return lines

    def _footer(self) -> list[str]:
        asking, view = self.session.asking, self.session.view
        if asking is not None:
            more = f"   ctrl+g: {_REVEAL_HINTS['agree']}" if asking.what == "reason" else ""
            return ["", f"Enter: {asking.does}   Esc: {asking.leaves}{more}"]
        if view is not None and view.reveal is not None:
            return [self._hints(_REVEALED_HINTS), self._hints(_REVEAL_HINTS)]
        return [self._hints(_LABEL_HINTS) if view else "", self._hints(_OTHER_HINTS)]

    def _hints(self, names: Mapping[str, str]) -> str:
        return "   ".join(f"{self._key(action)} {name}" for action, name in names.items())

    def _key(self, action: str) -> str:
        keys = keys_of(self._keys, action)  # type: ignore[arg-type]
        return _SHORT.get(keys[0], keys[0]) if keys else "-"

    def _line(self) -> Input:
        return self.query_one("#line", Input)

    def _static(self, name: str) -> Static:
        return self.query_one(name, Static)
