"""``em-circuits steer scan``: what every feature of a prompt really does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from em_circuits.cli.features import model_option
from em_circuits.cli.output import emit, json_option, table
from em_circuits.cli.session import Session, pass_session

if TYPE_CHECKING:
    from em_circuits.experiments.scan import Pairs, PromptScan

SHOWN, SHOWN_TARGETS = 15, 4
REGIMES = ("free", "attention_frozen", "gates_recomputed", "frozen_linear", "direct")


@click.command(epilog="Example: em-circuits steer scan 44a71b --top 10 --pairs 10")
@click.argument("prompt")
@model_option
@click.option("--top", type=click.IntRange(min=1), help="Show only the N most positive.")
@click.option(
    "--pairs",
    type=click.IntRange(2, 100),
    metavar="K",
    help="Ablate the K most positive two by two as well.",
)
@click.option(
    "--regime",
    type=click.Choice(REGIMES),
    default="free",
    show_default=True,
    help="What is held fixed meanwhile; free is the real model.",
)
@json_option
@pass_session
def scan(
    session: Session,
    prompt: str,
    model: str,
    top: int | None,
    pairs: int | None,
    regime: str,
    as_json: bool,
) -> None:
    """Ablate every active feature of one prompt for real: effect on each labelled token.

    An effect is that of the feature's presence, in logits: positive raises the token, or the
    contrast of evil and safe tokens.
    """
    with session.on_prompts(prompt) as work:
        from em_circuits.experiments.scan import scan_prompt
        from em_circuits.interventions import Regime

        scanned = scan_prompt(
            work,
            prompt,
            model=model,  # type: ignore[arg-type]
            n_pairs=pairs or 0,
            regime=Regime(regime),
        )
    if as_json:
        emit(scanned.model_copy(update={"features": scanned.features[:top]}))
    else:
        click.echo("\n".join(_lines(scanned, top or SHOWN)))


def _lines(scanned: PromptScan, n: int) -> Iterator[str]:
    yield (
        f"{scanned.prompt_id}, {scanned.model} model, every active feature ablated "
        f"({scanned.regime}); labels from: {scanned.labels_from}"
    )
    first = scanned.features[:n]
    # The tokens that move most under the features shown.
    moves = [max(map(abs, column)) for column in zip(*(f.effects for f in first), strict=True)]
    shown = sorted(sorted(range(len(moves)), key=lambda i: -moves[i])[:SHOWN_TARGETS])
    names = [f"{t.text.strip()[:9]}:{t.label[0]}" for t in (scanned.targets[i] for i in shown)]
    rows: list[tuple[Any, ...]] = [
        (f.layer, f.position, f.feature, f.contrast, *(f.effects[i] for i in shown)) for f in first
    ]
    yield table(("layer", "pos", "feature", "contrast", *names), rows)
    yield (
        f"{len(scanned.features)} features, {len(scanned.targets)} tokens (all in --json); "
        "logits; :e evil, :s safe, :u unsure"
    )
    if scanned.pairs is not None:
        yield ""
        yield from _pair_lines(scanned.pairs)


def _pair_lines(pairs: Pairs) -> Iterator[str]:
    places = [f"{f.layer}/{f.position}/{f.feature}" for f in pairs.features]
    rows = [
        (
            places[i],
            places[j],
            pairs.features[i].effect,
            pairs.features[j].effect,
            pairs.joint[i][j],
            value,
            "more" if value > 0 else "less",
        )
        for i, j, value in pairs.largest(SHOWN)
    ]
    yield table(("feature", "and", "alone", "alone", "both", "interaction", "than the sum"), rows)
    n = len(places) * (len(places) - 1) // 2
    yield (
        f"{min(n, SHOWN)} of {n} pairs, the largest interactions; contrast in logits, "
        "both minus the sum of each alone"
    )
