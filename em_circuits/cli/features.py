"""``em-circuits features``: which features, by which measure."""

from __future__ import annotations

import click

from em_circuits.cli.output import emit, json_option, table
from em_circuits.cli.session import Session, pass_session

model_option = click.option(
    "--model", type=click.Choice(["base", "merged"]), default="merged", show_default=True
)


@click.group()
def features() -> None:
    """Rank features, and measure which of them carry the shift from base to merged."""


@features.command(epilog="Example: em-circuits features rank 44a71b --top 10")
@click.argument("prompt")
@model_option
@click.option(
    "--method",
    type=click.Choice(["gradient", "direct", "total_effect", "signed_influence", "measured"]),
    default="gradient",
    show_default=True,
    help="gradient and measured see every active feature; the others a graph's nodes.",
)
@click.option("--top", type=click.IntRange(min=1), help="Only the N most positive.")
@json_option
@pass_session
def rank(
    session: Session, prompt: str, model: str, method: str, top: int | None, as_json: bool
) -> None:
    """Features of one prompt by evil-minus-safe contrast; positive pushes towards evil."""
    from em_circuits.pipeline.analyse import rank_prompt

    with session.workspace() as work:
        ranked = rank_prompt(work, prompt, model=model, method=method)  # type: ignore[arg-type]
    if as_json:
        emit(ranked.to_json(top))
        return
    click.echo(
        f"{ranked.prompt.prompt_id}, {model} model, by {method}; labels from: {ranked.labels_from}"
    )
    rows = [
        (f.layer, f.position, f.feature, f.contrast, f.evil_mean, f.safe_mean, f.activation)
        for f in ranked.ranking.top(top or 15)
    ]
    header = ("layer", "pos", "feature", "contrast", "evil", "safe", "activation")
    click.echo(table(header, rows))
    click.echo(f"{len(ranked.ranking.features)} features in all; contrast in logits")


@features.command(epilog="Example: em-circuits features mediate 44a71b --json")
@click.argument("prompt")
@click.option("--scan", is_flag=True, help="Rank by really setting each feature, not by gradient.")
@click.option("--random", "n_random", default=20, show_default=True, help="Matched random draws.")
@click.option("--top", type=click.IntRange(min=1), help="Only the N largest effects.")
@json_option
@pass_session
def mediate(
    session: Session, prompt: str, scan: bool, n_random: int, top: int | None, as_json: bool
) -> None:
    """Set features of the base to their merged values: how much of the shift comes back?"""
    from em_circuits.pipeline.analyse import mediate_prompt

    with session.workspace() as work:
        prompt_id, mediation = mediate_prompt(work, prompt, scan=scan, n_random=n_random)
    record = mediation.to_json(prompt_id, top=top)
    if as_json:
        emit(record)
        return
    shift, mass = record["shift"], record["evil_mass"]
    click.echo(
        f"{prompt_id}: contrast {shift['base']:.2f} -> {shift['merged']:.2f} logits, "
        f"evil mass {mass['base']:.2f} -> {mass['merged']:.2f}"
    )
    rows = [
        (p["k"], p["share"], p["evil_mass"], p["random_share"], p["random_low"], p["random_high"])
        for p in record["cumulative"]
    ]
    click.echo(table(("features", "share", "evil mass", "random", "low", "high"), rows))
    shares = record["shares"]
    click.echo("shares: " + ", ".join(f"{name} {_share(v)}" for name, v in shares.items()))
    if shares["features"] is None:
        click.echo("no share: the contrast moves by less than 0.5 logit")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
