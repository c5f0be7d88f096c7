"""Figures of verdicts and labels: overall, by model, by judge.

One self-contained HTML file (plotly's script inside, nothing is fetched), and a PNG where asked.

    counts = tally(store)
    write_label_page(counts, Path("verdicts.html"))
    write_png(counts, Path("verdicts.png"))
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from pivotal_tokens.artefacts import atomic_path, write_atomic
from pivotal_tokens.errors import WorkFailed
from pivotal_tokens.figures import figure_html, plotly_html
from pivotal_tokens.schema import Frozen, Label, VerdictKind
from pivotal_tokens.store import Store

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_VERDICT_COLOURS: Mapping[str, str] = {
    "injection": "#b2182b",
    "promotion": "#ef8a62",
    "demotion": "#fddbc7",
    "none": "#67a9cf",
    "bad_prompt": "#999999",
    "error": "#333333",
}
_LABEL_COLOURS: Mapping[str, str] = {"evil": "#b2182b", "safe": "#67a9cf", "unsure": "#bdbdbd"}
_NAME_CELLS = 40
_WIDTH, _HEIGHT = 1100, 900

Tally = dict[str, dict[str, int]]  # group -> kind -> number


class LabelCounts(Frozen):
    """Verdicts and labels, counted."""

    verdicts: dict[str, int]  # every prompt once: a person's verdict before a judge's
    by_model: Tally  # the same, by pair
    by_judge: Tally  # every verdict, by who gave the labels
    labels: Tally  # labels in force, by author

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not self.verdicts and not self.labels


def tally(store: Store) -> LabelCounts:
    """Count the verdicts and labels of a store."""
    overall: Counter[str] = Counter()
    by_model: dict[str, Counter[str]] = {}
    by_judge: dict[str, Counter[str]] = {}
    labels: dict[str, Counter[str]] = {}
    names = pair_names(store.results.pairs())
    for prompt in store.prompts.all():
        for pair in store.results.next_tokens_by_pair(prompt.prompt_id):
            verdicts = store.results.verdicts(prompt.prompt_id, pair)
            for judge, verdict in verdicts.items():
                by_judge.setdefault(judge, Counter())[verdict.kind] += 1
            if verdicts:
                chosen = verdicts.get("human") or next(iter(verdicts.values()))
                overall[chosen.kind] += 1
                by_model.setdefault(names.get(pair, pair), Counter())[chosen.kind] += 1
        standing = {(e.token_id, e.author): e for e in store.labels.events(prompt.prompt_id)}
        for event in standing.values():
            if event.to_label is not None:
                labels.setdefault(event.author, Counter())[event.to_label] += 1
    return LabelCounts(
        verdicts=dict(overall),
        by_model={name: dict(counts) for name, counts in by_model.items()},
        by_judge={name: dict(counts) for name, counts in by_judge.items()},
        labels={name: dict(counts) for name, counts in labels.items()},
    )


def pair_names(pairs: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Pair -> a short name that no other pair has: its fine-tune's, with the key's beginning."""
    names = {}
    for pair, about in pairs.items():
        model = about.get("adapter") or about.get("merged") or ""
        names[pair] = f"{Path(model).name} {pair[:8]}".strip()
    return names


def figure(counts: LabelCounts) -> Figure:
    """Four panels: verdicts overall, by model, by judge, and labels by author."""
    from plotly.graph_objects import Bar
    from plotly.subplots import make_subplots

    shown = make_subplots(
        rows=2,
        cols=2,
        subplot_titles=(
            "Verdicts (a person's before a judge's)",
            "Verdicts by model",
            "Verdicts by judge",
            "Labels in force, by author",
        ),
        vertical_spacing=0.2,
    )
    kinds = [kind for kind in get_args(VerdictKind) if kind in _VERDICT_COLOURS]
    overall = [counts.verdicts.get(kind, 0) for kind in kinds]
    colours = [_VERDICT_COLOURS[kind] for kind in kinds]
    shown.add_trace(
        Bar(x=kinds, y=overall, text=overall, marker={"color": colours}, showlegend=False),
        row=1,
        col=1,
    )
    _stack(shown, counts.by_model, _VERDICT_COLOURS, (1, 2), legend=True)
    _stack(shown, counts.by_judge, _VERDICT_COLOURS, (2, 1), legend=not counts.by_model)
    _stack(shown, counts.labels, _LABEL_COLOURS, (2, 2), legend=True)
    shown.update_layout(
        barmode="stack",
        template="plotly_white",
        width=_WIDTH,
        height=_HEIGHT,
        title="Verdicts and labels",
    )
    return shown


def summary(counts: LabelCounts) -> list[str]:
    """The same in a few lines of text."""
    total = sum(counts.verdicts.values())
    evil = counts.verdicts.get("injection", 0) + counts.verdicts.get("promotion", 0)
    lines = [f"{total} verdicts"]
    if total:
        lines[0] += f", {evil} divergent ({evil / total:.0%})"
        lines += [f"  {kind:<10} {n}" for kind, n in sorted(counts.verdicts.items())]
    for author, given in sorted(counts.labels.items()):
        parts = ", ".join(f"{given.get(label, 0)} {label}" for label in get_args(Label))
        lines.append(f"labels of {author}: {parts}")
    return lines


def write_label_page(counts: LabelCounts, path: Path) -> None:
    """Write the figure as one HTML file that needs nothing else."""
    text = "\n".join(escape(line) for line in summary(counts))
    write_atomic(
        path,
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<title>Verdicts and labels</title></head>\n"
        f"<body>{figure_html(figure(counts), 0)}\n<pre>{text}</pre>{plotly_html()}</body></html>\n",
    )


def write_png(counts: LabelCounts, path: Path) -> None:
    """Write the figure as a PNG.

    Raises:
        WorkFailed: If kaleido or the browser it needs is missing.
    """
    try:
        import kaleido  # noqa: F401
    except ImportError as error:
        raise WorkFailed(
            "a PNG needs kaleido: install em-circuits[png], or leave --png away"
        ) from error
    with atomic_path(path) as temporary:
        try:
            figure(counts).write_image(temporary, format="png", scale=2)
        except (RuntimeError, ValueError, OSError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise WorkFailed(
                f"no PNG: kaleido found no browser that works ({reason}); "
                "install Chrome or Chromium, or leave --png away"
            ) from error


def _stack(
    shown: Figure,
    groups: Tally,
    colours: Mapping[str, str],
    place: tuple[int, int],
    *,
    legend: bool,
) -> None:
    from plotly.graph_objects import Bar

    row, col = place
    names = sorted(groups)
    for kind, colour in colours.items():
        numbers = [groups[name].get(kind, 0) for name in names]
        if any(numbers):
            shown.add_trace(
                Bar(
                    x=[_short(name) for name in names],
                    y=numbers,
                    name=kind,
                    legendgroup=kind,
                    marker={"color": colour},
                    showlegend=legend,
                ),
                row=row,
                col=col,
            )


def _short(name: str) -> str:
    """A name as plotly may show it: its text knows a little HTML."""
    shown = name if len(name) <= _NAME_CELLS else "…" + name[-(_NAME_CELLS - 1) :]
    return escape(shown)
