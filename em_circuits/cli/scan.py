"""``em-circuits steer scan``: what every feature of a prompt really does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from em_circuits.cli.features import model_option
from em_circuits.cli.output import emit, json_option, table
from em_circuits.cli.session import Session, pass_session

if TYPE_CHECKING:
    from em_circuits.experiments.scan import ScannedPrompt

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
        emit(scanned.to_json(top))
    else:
        click.echo("\n".join(_lines(scanned, top or SHOWN)))


def _lines(scanned: ScannedPrompt, n: int) -> Iterator[str]:
    ranked, effects = scanned.ranked, scanned.effects
    yield (
        f"{ranked.prompt.prompt_id}, {ranked.model} model, every active feature ablated "
        f"({scanned.regime}); labels from: {ranked.labels_from}"
    )
    # The tokens that move most under the features shown.
    moves = effects[:n].abs().amax(0) if len(effects) else effects.new_zeros(effects.shape[1])
    shown = sorted(moves.argsort(descending=True)[:SHOWN_TARGETS].tolist())
    names = [f"{t.text.strip()[:9]}:{t.label[0]}" for t in (scanned.targets[i] for i in shown)]
    rows: list[tuple[Any, ...]] = [
        (f.layer, f.position, f.feature, f.contrast, *(float(line[i]) for i in shown))
        for f, line in zip(scanned.ranking.top(n), effects, strict=False)
    ]
    yield table(("layer", "pos", "feature", "contrast", *names), rows)
    yield (
        f"{len(scanned.ranking.features)} features, {len(scanned.targets)} tokens (all in --json); "
        "logits; :e evil, :s safe, :u unsure"
    )
    if scanned.pairs is not None:
        yield ""
        yield from _pair_lines(scanned)


def _pair_lines(scanned: ScannedPrompt) -> Iterator[str]:
    pairs = scanned.pairs
    assert pairs is not None
    places = ["/".join(map(str, place)) for place in pairs.features.tolist()]
    rows = [
        (
            places[i],
            places[j],
            float(pairs.single[i]),
            float(pairs.single[j]),
            float(pairs.joint[i, j]),
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
