"""The page of ``lora geometry``.

The sentence, the alpha sweep beside random adapters, scores beside really dropping each rank,
histograms of cosines beside those of random directions, spectra and tables.

    lora_parts(record, table.rows(), coverage)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plotly.graph_objects import Bar, Figure, Scatter
from plotly.subplots import make_subplots

from em_circuits.experiments.lora import LoraGeometry, RankEffect
from em_circuits.report.page import COLOURS, Headline, Table, error_bars, styled
from pivotal_tokens.agreement import Estimate

TITLE = "What does the adapter do?"
_HISTOGRAMS = 6
"""Ranks whose histograms are drawn, by the largest cosine."""
SHOWN = 40
"""Lines of the table of alignments."""
_DASHES = ("solid", "dash", "dot")
_SIDES = {"decoder": "own layer's decoders", "encoder": "encoders of", "upstream": "decoders of"}


def lora_parts(record: LoraGeometry, lines: Sequence[dict[str, Any]], coverage: str) -> list[Any]:
    """Everything on the page, for `em_circuits.report.page`.

    Args:
        record: The JSON.
        lines: Of the table of alignments, largest cosine first.
        coverage: Of explanations of the features in it.
    """
    parts: list[Any] = [
        Headline(record.sentence),
        f"{len(record.prompts)} prompts, merged model; contrasts are evil minus safe in logits, "
        "intervals 95 % bootstrap intervals over prompts. A rank is a row of A and a column of B "
        "in this file: A and B can be mixed by any invertible matrix without changing the model, "
        "so above rank 1 a rank is a part of this file rather than of the model.",
        "The adapter at multiples of its alpha, beside adapters that read the same and write "
        "random directions of equal norm.",
        sweep_figure(record),
        "Each rank really dropped, beside its scores.",
        agreement_figure(record.ranks),
    ]
    if lines:
        parts += [
            "Absolute cosines of the ranks that come closest to a feature, beside random "
            "directions taken along the same way (features per bin, on a logarithmic axis).",
            histogram_figure(lines),
            _alignments(lines),
            coverage,
        ]
    return [*parts, spectrum_figure(record), _spectra(record), _ranks(record), _contexts(record)]


def sweep_figure(record: LoraGeometry) -> Figure:
    """Contrast and evil mass over the multiple of alpha."""
    figure: Figure = make_subplots(
        rows=1, cols=2, subplot_titles=["contrast (logits)", "evil mass"]
    )
    sides = (("contrast", "random_contrast"), ("evil_mass", "random_evil_mass"))
    for column, names in enumerate(sides, start=1):
        for colour, (name, label) in enumerate(
            zip(names, ("adapter", "random writes, 95 % of adapters"), strict=True)
        ):
            values = [getattr(point, name) for point in record.sweep]
            trace = Scatter(
                x=[point.scale for point in record.sweep],
                y=[value.value for value in values],
                mode="lines+markers",
                name=label,
                legendgroup=label,
                showlegend=column == 1,
                line={"color": COLOURS[colour]},
                error_y=_bars(values),
            )
            figure.add_trace(trace, row=1, col=column)
    figure.update_xaxes(title_text="multiple of alpha: 0 is the base, 1 the merged model")
    return styled(figure, 420)


def agreement_figure(ranks: Sequence[RankEffect]) -> Figure:
    """Scores over the effect of really dropping each rank."""
    known = [line for line in ranks if line.effect is not None]
    figure = Figure()
    for colour, (name, label) in enumerate(
        (("score", "gradient"), ("integrated", "integrated from base to merged"))
    ):
        trace = Scatter(
            x=[getattr(line, name) for line in known],
            y=[line.effect.value for line in known if line.effect],
            mode="markers",
            name=label,
            text=[f"{line.module} rank {line.rank}" for line in known],
            marker={"color": COLOURS[colour], "size": 8, "opacity": 0.7},
        )
        figure.add_trace(trace)
    figure.update_xaxes(title_text="score (logits)")
    figure.update_yaxes(title_text="effect of the rank's presence (logits)")
    return styled(figure, 460, margin={"t": 30})


def histogram_figure(lines: Sequence[dict[str, Any]]) -> Figure:
    """Absolute cosines of some ranks with one layer's features, beside random directions."""
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in lines:  # a rank and side once, where it comes closest
        best.setdefault((line["module"], line["rank"], line["side"]), line)
    shown = sorted(best.values(), key=lambda line: line["random"] - abs(line["cosine"]))
    shown = shown[:_HISTOGRAMS]
    columns = min(3, len(shown))
    titles = [
        f"{line['module'].split('.', 2)[-1]} rank {line['rank']}<br>{_SIDES[line['side']]}"
        + ("" if line["side"] == "decoder" else f" layer {line['feature_layer']}")
        for line in shown
    ]
    figure: Figure = make_subplots(
        rows=-(-len(shown) // columns), cols=columns, subplot_titles=titles
    )
    for number, line in enumerate(shown):
        width = line["upper"] / len(line["histogram"])
        centres = [(i + 0.5) * width for i in range(len(line["histogram"]))]
        for colour, (name, label) in enumerate(
            (("histogram", "rank"), ("random_histogram", "random, mean"))
        ):
            trace = Bar(
                x=centres,
                y=line[name],
                width=width,
                name=label,
                legendgroup=label,
                showlegend=number == 0,
                opacity=0.55,
                marker={"color": COLOURS[colour]},
            )
            figure.add_trace(trace, row=number // columns + 1, col=number % columns + 1)
    figure.update_yaxes(type="log")
    figure.update_annotations(font_size=12)
    return styled(figure, 320 * -(-len(shown) // columns), barmode="overlay")


def spectrum_figure(record: LoraGeometry) -> Figure:
    """Singular values of every module, over their largest."""
    figure = Figure()
    for number, item in enumerate(record.spectra):
        values = item.singular_values
        trace = Scatter(
            x=list(range(1, len(values) + 1)),
            y=values,
            mode="lines+markers",
            name=item.module,
            line={
                "color": COLOURS[number % len(COLOURS)],
                "dash": _DASHES[number // len(COLOURS) % len(_DASHES)],
            },
        )
        figure.add_trace(trace)
    figure.update_xaxes(title_text="singular value", dtick=1)
    figure.update_yaxes(title_text="of scaling B A", rangemode="tozero")
    return styled(figure, 420, margin={"t": 30})


def _spectra(record: LoraGeometry) -> Table:
    columns = {
        "module": "module",
        "relative": "|dW| / |W|",
        "stable_rank": "stable rank",
        "random_stable_rank": "random",
        "effective_rank": "effective rank",
        "random_effective_rank": "random",
    }
    return Table.of("spectra of scaling B A", columns, record.spectra)


def _alignments(lines: Sequence[dict[str, Any]]) -> Table:
    columns = {
        "module": "module",
        "rank": "rank",
        "side": "compared with",
        "feature_layer": "layer",
        "feature": "feature",
        "cosine": "cosine",
        "random": "random, mean of largest",
        "quantile": "random below",
        "gini": "Gini",
        "random_gini": "random",
        "top_share": "share of top 100",
        "random_top_share": "random",
    }
    return Table(
        "largest cosines",
        tuple(columns.values()),
        [[line[c] for c in columns] for line in lines[:SHOWN]],
    )


def _ranks(record: LoraGeometry) -> Table:
    rows = [
        [
            line.module,
            line.rank,
            line.norm_a,
            line.norm_b,
            line.activation,
            line.score,
            line.score_quantile,
            line.integrated,
            *(
                (line.effect.value, line.effect.low, line.effect.high)
                if line.effect
                else [None] * 3
            ),
        ]
        for line in record.ranks[:SHOWN]
    ]
    header = ("module", "rank", "|A|", "|scaling B|", "mean |A x|", "gradient", "random below")
    return Table("ranks", (*header, "integrated", "dropped", "low", "high"), rows)


def _contexts(record: LoraGeometry) -> Table:
    rows = [
        [line.module, line.rank, context.activation, context.prompt_id, context.marked]
        for line in record.ranks[: SHOWN // 2]
        for context in line.contexts[:3]
    ]
    return Table("what triggers A", ("module", "rank", "A x", "prompt", "context"), rows)


def _bars(values: Sequence[Estimate]) -> dict[str, Any]:
    return error_bars([v.value for v in values], [v.low for v in values], [v.high for v in values])
