"""Full-screen review on a terminal, one key per token.

    run_terminal(ReviewController(ReviewService(store, "ada"), auto_finish=True), key_map())

Works at 80 x 24, over ssh, without a mouse and without colour. The controller does what the keys
say; this draws it. Everything shown is plain text from `screen.item_lines`: Textual's
markup is never read, so a model's text cannot be any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from textual import events
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from pivotal_tokens.review.controller import ReviewController
from pivotal_tokens.review.display import fit, visible, wrap_visible
from pivotal_tokens.review.keys import DEFAULTS, RESERVED, Action, keys_of
from pivotal_tokens.review.plain import ReviewSummary
from pivotal_tokens.review.rubric import RUBRIC
from pivotal_tokens.review.screen import (
    Line,
    Style,
    item_lines,
    progress_line,
    prompt_lines,
    put_off_line,
    reveal_lines,
)

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
POLL_SECONDS = 2.0
_KEYS_WIDTH = 18  # cells of the keys' column on the help page
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


def run_terminal(review: ReviewController, keys: Mapping[str, Action]) -> ReviewSummary:
    """Show item after item until the person quits."""
    try:
        ReviewTerminal(review, keys).run(mouse=False)
    finally:
        review.leave()
    return ReviewSummary(review.finished, review.rejected)


class ReviewTerminal(App[None]):
    """The review screen."""

    CSS = CSS
    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = None
    BINDINGS: ClassVar[list[BindingType]] = []  # every key goes through `keys`

    def __init__(self, review: ReviewController, keys: Mapping[str, Action]) -> None:
        # The terminal's own colours; with NO_COLOR none at all, no background either.
        super().__init__(ansi_color=True)
        self.review = review
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
        self.review.start()
        self.set_interval(POLL_SECONDS, self.poll)
        self.call_after_refresh(self.follow)

    def on_resize(self) -> None:
        self.draw()

    def poll(self) -> None:
        """Look for new items now and then."""
        if not isinstance(self.screen, Pages):
            self.review.poll()
            self.count()
            self.follow()

    # --- keys ----------------------------------------------------------------------------------

    def on_key(self, event: events.Key) -> None:
        if isinstance(self.screen, Pages):
            return
        action = self._keys.get(event.character or "") or self._keys.get(event.key)
        if self.review.asking is not None:
            if event.key == "escape":
                self.review.stop_asking()
            elif action == "agree" and not event.is_printable:
                self.review.stop_asking()
                self.review.key(action)
            else:
                return
        elif action is not None:
            self.review.key(action)
        elif event.character in RESERVED and self.review.view is not None:
            self.review.ask("command", event.character or "")
        else:
            return
        event.stop()
        event.prevent_default()
        self.follow()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.review.answer(event.value)
        self.follow()

    async def action_quit(self) -> None:
        self.review.leave()
        self.exit()

    # --- what is on the screen -----------------------------------------------------------------

    def follow(self) -> None:
        """Bring the screen to where the controller is."""
        review = self.review
        if review.over:
            self.exit()
            return
        self._follow_line()
        page, review.page = review.page, None
        if page == "help":
            self.push_screen(Pages("Help", help_lines(self._keys, self.size.width - _PAGE_MARGIN)))
        elif page == "prompt":
            self.push_screen(Pages("The prompt, as the model sees it", self._whole()))
        self.draw()
        self.call_after_refresh(self.count)  # the next item is there before everything is counted

    def count(self) -> None:
        """Show the progress."""
        progress = self.review.progress
        self._progress = progress_line(progress) if progress else ""
        self.draw()

    def draw(self) -> None:
        """Redraw everything."""
        columns, rows = self.size.width, self.size.height
        if not columns or self.review.over:
            return
        hints: list[Line] = [((fit(line, columns), "dim"),) for line in self._footer(columns)]
        message: list[Line] = [((line, "bold"),) for line in self._message(columns)]
        self._static("#header").update(self._header(columns))
        self._static("#item").update(content(self._body(columns, rows)))
        self._static("#message").update(content(message))
        self._static("#keys").update(content(hints))

    def _follow_line(self) -> None:
        asking, line = self.review.asking, self._line()
        if asking is None:
            if line.display:
                line.value = ""
                line.display = False
                self.set_focus(None)
        elif not line.display:
            line.placeholder = asking.asks
            line.value = self.review.begun
            line.display = True
            line.focus()
            line.cursor_position = len(line.value)

    def _header(self, columns: int) -> Content:
        view = self.review.view
        prompt = view.question.prompt if view else None
        right = f"prompt {prompt.prompt_id} ({prompt.kind})" if prompt else ""
        room = max(columns - len(right), 1)
        return Content.styled(fit(fit(self._progress, room) + right, columns), "bold")

    def _body(self, columns: int, rows: int) -> list[Line]:
        view = self.review.view
        room = rows - _CHROME_ROWS - (1 if self.review.asking else 0)
        room -= len(self._message(columns)) - 1
        if view is None:
            waiting = self.review.progress.waiting if self.review.progress else 0
            others = f" that your filters let through; {waiting} others do" if waiting else ""
            return [((f"Nothing waits for review{others}.", "bold"),), (), ((self._put_off(), ""),)]
        if view.reveal is None:
            return item_lines(view, columns, room)
        differences = reveal_lines(view.reveal, columns, _REVEAL_ROWS)
        return [*item_lines(view, columns, room - len(differences)), *differences]

    def _message(self, columns: int) -> list[str]:
        """What is said, in a row or two."""
        return wrap_visible(self.review.message, columns)[:_MESSAGE_ROWS]

    def _put_off(self) -> str:
        progress = self.review.progress
        put_off = put_off_line(progress) if progress else ""
        said = f"{put_off} (--skipped asks skipped ones again). " if put_off else ""
        return f"{said}New items appear here by themselves."

    def _whole(self) -> list[Line]:
        view = self.review.view
        assert view is not None
        columns = self.size.width - _PAGE_MARGIN
        lines = prompt_lines(view, columns)
        if view.at is not None:
            token = visible(view.at.text)
            lines += [(), (("The token under the cursor:", "dim"),)]
            lines += [((token[i : i + columns], ""),) for i in range(0, len(token), columns)]
        return lines

    def _footer(self, columns: int) -> list[str]:
        asking, view = self.review.asking, self.review.view
        if asking is not None:
            more = f"   ctrl+g: {_REVEAL_HINTS['agree']}" if asking.what == "why" else ""
            return ["", f"Enter: {asking.does}   Esc: {asking.leaves}{more}"]
        if view is not None and view.reveal is not None:
            lists = [_REVEALED_HINTS, _REVEAL_HINTS]
        else:
            lists = [_LABEL_HINTS if view else {}, _OTHER_HINTS]
        return [self._hints(names, columns) for names in lists]

    def _hints(self, names: Mapping[str, str], columns: int) -> str:
        """As many as there is room for, the last two (help, quit) always among them."""
        hints = [f"{self._key(action)} {name}" for action, name in names.items()]
        while len(hints) > 2 and len("   ".join(hints)) > columns:
            del hints[-3]
        return "   ".join(hints)

    def _key(self, action: str) -> str:
        keys = keys_of(self._keys, action)  # type: ignore[arg-type]
        return _SHORT.get(keys[0], keys[0]) if keys else "-"

    def _line(self) -> Input:
        return self.query_one("#line", Input)

    def _static(self, name: str) -> Static:
        return self.query_one(name, Static)


def content(lines: Sequence[Line]) -> Content:
    """Lines of spans as Textual shows them; their text stays text."""
    parts: list[Content] = []
    for number, line in enumerate(lines):
        if number:
            parts.append(Content("\n"))
        parts += [Content.styled(text, _STYLES[style]) for text, style in line if text]
    return Content("").join(parts)


def help_lines(keys: Mapping[str, Action], columns: int) -> list[Line]:
    """Every key, then the rubric."""
    lines: list[Line] = []
    for action, about in DEFAULTS.items():
        names = fit(" ".join(keys_of(keys, action)), _KEYS_WIDTH)
        lines.append(((names, "bold"), (fit(about.does, columns - _KEYS_WIDTH), "")))
    return [*lines, (), *(((line, ""),) for line in RUBRIC.splitlines())]


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
