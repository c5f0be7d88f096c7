"""``em-circuits features``: which features, by which measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from em_circuits.scoring import FORMER, TO_RANK, Scoring
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


class Renamed(click.Choice):
    """A choice that takes words of the first edition too, and says what they are called now.

    Args:
        choices: The words of today.
        former: Word of the first edition -> word of today.
    """

    def __init__(self, choices: Sequence[str], former: Mapping[str, str]) -> None:
        super().__init__([*choices, *former])
        self._shown, self._former = click.Choice(list(choices)), former

    def convert(self, value: Any, *context: Any) -> Any:
        """Today's word."""
        word = super().convert(value, *context)
        if word not in self._former:
            return word
        click.echo(f"{word} is now called {self._former[word]}", err=True)
        return str(self._former[word])

    def get_metavar(self, **context: Any) -> str | None:
        """The words of today."""
        return self._shown.get_metavar(**context)


def method_option(
    default: Scoring, *, of_one_prompt: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``--method`` of the commands that rank features.

    Args:
        default: The method.
        of_one_prompt: Also `greedy`, whose scores cannot be averaged over prompts.
    """
    methods = [str(by) for by in Scoring if of_one_prompt or by is not Scoring.GREEDY]
    former = {word: str(by) for word, by in FORMER.items() if str(by) in methods}
    return click.option(
        "--method",
        type=Renamed(methods, former),
        default=str(default),
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
@method_option(TO_RANK, of_one_prompt=True)
@click.option(
    "--measure",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    help="Features that gradient+ablation really ablates.",
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
        from em_circuits.experiments.analyse import PromptRanking, rank_prompt

        ranked = rank_prompt(
            work,
            prompt,
            model=model,  # type: ignore[arg-type]
            by=method,
            n_measured=measure,
        )
    result = PromptRanking.of(ranked, top if as_json else top or 15)
    if as_json:
        emit(result)
        return
    click.echo(f"{result.prompt_id}, {model} model, by {method}; labels from: {result.labels_from}")
    other = "gradient" if method in ("gradient", "gradient+ablation") else "graph"
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
            "measured" if f.measured else other,
        )
        for f in result.features
    ]
    header = ("layer", "pos", "feature", "contrast", "evil", "safe", "g", "activation", "by")
    click.echo(table(header, rows))
    click.echo(f"{len(ranked)} features in all; contrast in logits, g is Hedges' g")


@features.command(epilog="Example: em-circuits features aggregate --exclude-layers 14,15 --top 20")
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@model_option
@method_option(Scoring.GRADIENT)
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
@method_option(Scoring.GRADIENT)
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
