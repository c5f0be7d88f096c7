"""Review screen as a pure function: a view in, lines of (text, style) spans out.

Every text of a model goes through `visible`, so
that it is shown exactly and can do nothing; styles only repeat what letters and signs say, so that
a terminal without colour shows as much.

    lines = item_lines(view, 80, 20)
    plain(lines)                     # the same as strings
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pivotal_tokens.review.commands import Place
from pivotal_tokens.review.display import fit, visible, width, wrap
from pivotal_tokens.review.questions import Progress, Question, Reveal, View
from pivotal_tokens.schema import Label, ModelName, TokenScore

Style = Literal["", "dim", "bold", "evil", "safe", "unsure", "cursor", "differs"]
Span = tuple[str, Style]
Line = tuple[Span, ...]

MARKS: Mapping[Label | None, str] = {"evil": "E", "safe": "s", "unsure": "?", None: "."}
_BLOCKS = " ▏▎▍▌▋▊▉█"
_BAR = 5
_GAP = 2
_ID = 6
_FIXED = 28  # a side's cells beside the token's text
_LEAST = 8  # cells of the text
_LETTERS: Mapping[ModelName, str] = {"base": "B", "merged": "T"}


def item_lines(view: View, columns: int, rows: int) -> list[Line]:
    """The prompt, both lists side by side, and the token under the cursor, in at most `rows`."""
    lists = _lists(view, columns)
    detail = [*_notes(view, columns), *_detail(view, columns)]
    room = rows - len(lists) - len(detail) - 1
    if view.reveal is not None:  # why one differs is said of the whole prompt
        whole = len(wrap(view.question.prompt.text, columns - 2))
        lists = _window(lists, view.cursor.rank, max(rows - len(detail) - 1 - whole, 3))
        room = rows - len(lists) - len(detail) - 1
    elif room < 2:  # a low window: the lists go by what is under the cursor
        lists = _window(lists, view.cursor.rank, max(rows - len(detail) - 3, 3))
        room = rows - len(lists) - len(detail) - 1
    return [*_prompt(view, columns, max(room, 1)), (), *lists, *detail][: max(rows, 1)]


def plain(lines: Sequence[Line]) -> list[str]:
    """The lines as strings."""
    return ["".join(text for text, _ in line) for line in lines]


def prompt_lines(view: View, columns: int) -> list[Line]:
    """The whole prompt, as the model sees it."""
    return [((line, ""),) for line in wrap(view.question.prompt.text, columns)]


def votes_line(question: Question, token_id: int) -> str:
    """What each reviewer said about a token, for an adjudicator."""
    votes = question.votes.items()
    return ", ".join(f"{visible(name)} {vote.get(token_id, 'none')}" for name, vote in votes)


def rejections_line(question: Question) -> str:
    """Who found the prompt bad, for an adjudicator."""
    return f"  rejected by {', '.join(map(visible, question.rejected_by))}"


def reveal_lines(reveal: Reveal, columns: int, rows: int) -> list[Line]:
    """What the judge had said, once the person has answered."""
    differ = len(reveal.differences)
    head = fit(f"The judge differs on {differ} of {len(reveal.labels)} tokens:", columns)
    lines: list[Line] = [((head, "bold"),)]
    for one in reveal.differences[: rows - 2 if differ > rows - 1 else differ]:
        said = f"   you {one.human}, judge {one.judge}"
        text = visible(one.text)
        shown = text if width(text) <= columns - len(said) - 2 else fit(text, columns - 30)
        lines.append((("  " + shown.rstrip(" "), "bold"), (said, "differs")))
    if len(lines) - 1 < differ:
        lines.append(
            ((f"  and {differ - len(lines) + 1} more (yours/the judge's stand above)", "dim"),)
        )
    if reveal.quotes and len(lines) < rows:
        lines.append(((fit(quotes_line(reveal), columns), "dim"),))
    return lines[:rows]


def quotes_line(reveal: Reveal) -> str:
    """What the judge quoted, in one line."""
    return "  because of " + ", ".join(
        f"“{visible(quote, spaces=False)}”" for quote in reveal.quotes
    )


def progress_line(progress: Progress) -> str:
    """How far the reviewer is, in one line."""
    parts = [
        visible(progress.reviewer, spaces=False),
        f"{progress.answered} done, {progress.waiting} waiting",
    ]
    if progress.per_hour is not None:
        parts.append(f"{progress.per_hour:.0f}/h")
    if progress.eta_seconds is not None and progress.waiting:
        minutes = progress.eta_seconds / 60
        parts.append(f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.0f} h")
    return "  ".join(parts)


def put_off_line(progress: Progress) -> str:
    """Number of deferred and skipped items; empty where there are none."""
    states = progress.states
    return ", ".join(f"{states[s]} {s}" for s in ("deferred", "skipped") if states.get(s))


def mark(question: Question, token_id: int) -> str:
    """A token's answer as a sign."""
    label = question.labels.get(token_id)
    if label is None and token_id in question.abstained:
        return "-"
    if label is None and token_id in question.disputed:
        return "!"
    return MARKS[label]


def _prompt(view: View, columns: int, rows: int) -> list[Line]:
    lines = wrap(view.question.prompt.text, columns - 2)
    if len(lines) <= rows:
        return [(("| ", "dim"), (line, "")) for line in lines]
    below = lines[len(lines) - rows + 1 :] if rows > 1 else lines[-1:]
    above: Line = ((f"| … {len(lines) - len(below)} lines above (v shows all)", "dim"),)
    shown: list[Line] = [(("| ", "dim"), (line, "")) for line in below]
    return [above, *shown] if rows > 1 else shown


def _lists(view: View, columns: int) -> list[Line]:
    side = (columns - _GAP) // 2
    left, right = (
        [_row(view, model, token, side) for token in view.tokens(model)]
        for model in ("base", "merged")
    )
    base = fit(_heading(view, "base"), side) + " " * _GAP
    lines: list[Line] = [((base, "bold"), (_heading(view, "merged"), "bold"))]
    empty: Line = ((" " * side, ""),)
    for i in range(max(len(left), len(right))):
        one = left[i] if i < len(left) else empty
        other = right[i] if i < len(right) else ()
        lines.append((*one, (" " * _GAP, ""), *other))
    return lines


def _heading(view: View, model: ModelName) -> str:
    hidden = len(view.question.list(model).top) - len(view.tokens(model))
    return f"{_LETTERS[model]} {model}" + (f" ({hidden} under p .001 hidden)" if hidden else "")


def _row(view: View, model: ModelName, token: TokenScore, side: int) -> Line:
    under = view.cursor == Place(model, token.rank)
    twin = view.at is not None and view.at.token_id == token.token_id and not under
    label = view.question.labels.get(token.token_id)
    room = side - _FIXED
    named = room >= _LEAST  # a narrow side goes without the id, then without the bar
    room += 0 if named else _ID + 1
    drawn = room >= _LEAST
    text = fit(visible(token.text), room if drawn else room + _BAR)
    place = f"{'>' if under else '=' if twin else ' '}{_LETTERS[model]}{token.rank}"
    style: Style = "cursor" if under else ""
    return (
        (f"{place:<5}", style or ("bold" if twin else "dim")),
        (mark(view.question, token.token_id), label or "dim"),
        _judges(view, token, label),
        (f"{token.probability:6.1%} ", style),
        (_bar(token.probability) if drawn else "", style or "dim"),
        (f" {text} " if named else f" {text}", style),
        (fit(f"{token.token_id:>{_ID}}", _ID) if named else "", style or "dim"),
    )


def _judges(view: View, token: TokenScore, label: Label | None) -> Span:
    if view.reveal is None or token.token_id not in view.reveal.judge_labels:
        return ("  ", "")
    judge = view.reveal.judge_labels[token.token_id]
    return (f"/{MARKS[judge]}", "dim" if judge == label else "differs")


def _bar(probability: float) -> str:
    eighths = round(min(max(probability, 0.0), 1.0) * _BAR * 8)
    whole, part = divmod(eighths, 8)
    return fit("█" * whole + (_BLOCKS[part] if part else ""), _BAR)


def _notes(view: View, columns: int) -> list[Line]:
    """One's own remarks, the last one where there are several."""
    notes = view.question.notes
    if not notes:
        return []
    more = f"  ({len(notes) - 1} before)" if len(notes) > 1 else ""
    text = fit(f"  note: {visible(notes[-1], spaces=False)}", columns - len(more)).rstrip()
    return [((text + more, "dim"),)]


def _detail(view: View, columns: int) -> list[Line]:
    token = view.at
    if token is None:
        return [()]
    name: ModelName = "merged" if view.cursor.model == "base" else "base"
    there = view.question.list(name).by_id[token.token_id]
    facts = f" id {token.token_id}  p {token.probability:.4f}  {name}: rank {there.rank}"
    facts += f" p {there.probability:.4f}"
    text = visible(token.text)
    room = columns - width(facts) - 2
    shown = text if width(text) <= room else fit(text, max(room, 4))
    lines: list[Line] = [(("> ", "bold"), (shown, "bold"), (facts, "dim"))]
    if view.question.votes:
        said = votes_line(view.question, token.token_id)
        lines.append(((fit(f"  {said}", columns), "differs"),))
    if view.question.rejected_by:
        lines.append(((fit(rejections_line(view.question), columns), "differs"),))
    for model, going_on in list(view.continuations.get(token.token_id, ()))[:2]:
        head = f"  {_LETTERS[model]} goes on: "
        lines.append(((head, "dim"), (fit(visible(going_on), columns - len(head)), "")))
    return lines


def _window(lists: list[Line], rank: int, rows: int) -> list[Line]:
    """The heading and the rows around the cursor."""
    body = lists[1:]
    if len(body) <= rows - 1:
        return lists
    start = min(max(rank - 1 - (rows - 1) // 2, 0), len(body) - rows + 1)
    return [lists[0], *body[start : start + rows - 1]]
