"""``em-circuits features``: which features, by which measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from em_circuits.cli.explain import explain
from em_circuits.cli.feature_tables import (
    aggregate_notes,
    aggregate_table,
    aggregate_title,
    diff_table,
    layer_note,
)
from em_circuits.cli.mediate import mediate
from em_circuits.cli.output import emit, json_option, table
from em_circuits.cli.session import Session, pass_session
from pivotal_tokens.errors import RequestError

if TYPE_CHECKING:
    from em_circuits.features import AggregateSettings

model_option = click.option(
    "--model", type=click.Choice(["base", "merged"]), default="merged", show_default=True
)


by_position_option = click.option(
    "--by-position", is_flag=True, help="Keep positions apart, counted from the prompt's end."
)
min_prompts_option = click.option(
    "--min-prompts",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Test features that are scored in at least so many prompts.",
)
exclude_layers_option = click.option(
    "--exclude-layers",
    default="",
    metavar="L,L,...",
    help="Leave these layers out, and compare them with the rest.",
)
METHODS = [
    "refined",
    "gradient",
    "measured",
    "joint",
    "direct",
    "total_effect",
    "signed_influence",
]
"""Of scores that can be averaged over prompts."""
OF_ONE_PROMPT = [*METHODS, "forward"]
FIRST_ORDER = ("refined", "gradient")


def method_option(
    default: str, methods: Sequence[str] = METHODS
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``--method`` of the commands that rank features."""
    return click.option(
        "--method",
        type=click.Choice(methods),
        default=default,
        show_default=True,
        help="direct, total_effect and signed_influence see a graph's nodes, the others every "
        "active feature; all but these three and gradient run the model.",
    )


@click.group()
def features() -> None:
    """Rank features, and measure which of them carry the shift from base to merged."""


features.add_command(explain)
features.add_command(mediate)


@features.command(epilog="Example: em-circuits features rank 44a71b --top 10")
@click.argument("prompt")
@model_option
@method_option("refined", OF_ONE_PROMPT)
@click.option(
    "--measure",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    help="Features that refined really ablates.",
)
@click.option("--top", type=click.IntRange(min=1), help="Only the N most positive.")
@json_option
@pass_session
def rank(
    session: Session,
    prompt: str,
    model: str,
    method: str,
    measure: int,
    top: int | None,
    as_json: bool,
) -> None:
    """Features of one prompt by evil-minus-safe contrast; positive pushes towards evil."""
    with session.on_prompts(prompt) as work:
        from em_circuits.experiments.analyse import rank_prompt

        ranked = rank_prompt(
            work,
            prompt,
            model=model,  # type: ignore[arg-type]
            method=method,
            n_measured=measure,
        )
    if as_json:
        emit(ranked.to_json(top))
        return
    click.echo(
        f"{ranked.prompt.prompt_id}, {model} model, by {method}; labels from: {ranked.labels_from}"
    )
    rows = [
        (
            f.layer,
            f.position,
            f.feature,
            f.contrast,
            f.evil_mean,
            f.safe_mean,
            f.hedges_g,
            f.activation,
            "measured" if f.measured else "gradient" if method in FIRST_ORDER else "graph",
        )
        for f in ranked.ranking.top(top or 15)
    ]
    header = ("layer", "pos", "feature", "contrast", "evil", "safe", "g", "activation", "by")
    click.echo(table(header, rows))
    click.echo(
        f"{len(ranked.ranking.features)} features in all; contrast in logits, g is Hedges' g"
    )


@features.command(epilog="Example: em-circuits features aggregate --exclude-layers 14,15 --top 20")
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@model_option
@method_option("gradient")
@by_position_option
@exclude_layers_option
@min_prompts_option
@click.option("--pair", metavar="KEY", help="Another model pair in the store, not loaded.")
@click.option("--top", type=click.IntRange(min=1), help="Only the N most positive.")
@json_option
@pass_session
def aggregate(
    session: Session,
    prompts: tuple[str, ...],
    exclude_layers: str,
    min_prompts: int,
    pair: str | None,
    top: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Features over all labelled prompts, or over those that are named, by mean contrast."""
    from em_circuits.experiments.aggregate import AggregateRequest, aggregate_prompts, find_pair

    request = AggregateRequest(
        exclude_layers=_layers(exclude_layers),
        settings=_aggregate_settings(session, min_prompts),
        **options,
    )
    with session.workspace() as work:
        key = find_pair(work, pair) if pair else None
        table = aggregate_prompts(work, prompts, request, pair=key)
    record, lines = table.record, table.rows()
    if as_json:
        emit({**table.head(), "features": lines[:top]})
        return
    click.echo(aggregate_title(record))
    click.echo(aggregate_table(lines[: top or 15], by_position=request.by_position))
    click.echo("\n".join(aggregate_notes(record)))
    click.echo(f"{'kept' if table.reused else 'written'}: {table.parquet_path}")


@features.command(epilog="Example: em-circuits features diff --method total_effect --json")
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@method_option("gradient")
@by_position_option
@exclude_layers_option
@min_prompts_option
@click.option("--pair", "pairs", multiple=True, metavar="KEY", help="A model pair in the store.")
@click.option(
    "--also",
    "roots",
    multiple=True,
    type=click.Path(file_okay=False),
    help="Also every model pair of the store under this root.",
)
@click.option("--top", type=click.IntRange(min=1), help="Only the N largest rises of the score.")
@json_option
@pass_session
def diff(
    session: Session,
    prompts: tuple[str, ...],
    pairs: tuple[str, ...],
    roots: tuple[str, ...],
    exclude_layers: str,
    min_prompts: int,
    top: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """What merged changes of base's features: activation, score, direct edge to the contrast."""
    from contextlib import ExitStack

    from em_circuits.experiments.difference import (
        DifferenceRequest,
        difference_over_prompts,
        find_sources,
        joined,
    )

    request = DifferenceRequest(
        exclude_layers=_layers(exclude_layers),
        settings=_aggregate_settings(session, min_prompts),
        **options,
    )
    with ExitStack() as stack:
        work = stack.enter_context(session.workspace())
        others = [stack.enter_context(session.workspace(root=root)) for root in roots]
        sources = find_sources(work, pairs, others)
        table = difference_over_prompts(sources, prompts, request)
    lines = joined(table)
    if as_json:
        emit({**table.head(), "features": lines[:top]})
        return
    for number, pair in enumerate(table.record["pairs"]):
        n = len(pair["prompts"])
        click.echo(f"pair {pair['pair'][:12]}: merged minus base, {n} prompts, by {request.method}")
        click.echo(diff_table(lines[: top or 15], number, by_position=request.by_position))
        if pair["layers"]:
            click.echo(layer_note(pair["layers"]))
    click.echo(f"{'kept' if table.reused else 'written'}: {table.parquet_path}")


def _aggregate_settings(session: Session, min_prompts: int) -> AggregateSettings:
    from em_circuits.features import AggregateSettings

    return AggregateSettings(min_prompts=min_prompts, seed=session.seed)


def _layers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise RequestError(f"--exclude-layers {text!r}: give layer numbers, such as 14,15")
    return tuple(sorted({int(part) for part in parts}))
