"""``em-circuits steer``: really change features and see what the model says then."""

from __future__ import annotations

from typing import Any

import click

from em_circuits.cli.features import Renamed, model_option
from em_circuits.cli.output import emit, json_option, table
from em_circuits.cli.scan import REGIMES, scan
from em_circuits.cli.session import Session, pass_session
from em_circuits.cli.steer_experiments import sweep, transfer
from em_circuits.cli.validation import validate
from em_circuits.feature import FeatureChoice
from em_circuits.intervention import Unit, Where
from em_circuits.scoring import FORMER, TO_STEER, Scoring


@click.group()
def steer() -> None:
    """Interventions on the model itself, with controls."""


@steer.command(epilog="Example: em-circuits steer run 44a71b --features top:10 --mode ablate")
@click.argument("prompt")
@model_option
@click.option(
    "--features",
    default="top:10",
    show_default=True,
    metavar="top:N|bottom:N|abs:N|L/POS/ID,...",
    help="Which features.",
)
@click.option(
    "--mode",
    type=click.Choice(["set", "add", "scale", "ablate", "clamp"]),
    default="ablate",
    show_default=True,
    help="What becomes of their activation.",
)
@click.option("--value", type=float, help="Needed by set, add, scale and clamp.")
@click.option(
    "--unit",
    type=Renamed([str(unit) for unit in Unit], {"own": str(Unit.RELATIVE)}),
    default="absolute",
    show_default=True,
    help="Of the value: as it is, or relative to the feature's own activation.",
)
@click.option(
    "--at",
    type=click.Choice([str(where) for where in Where]),
    default="found",
    show_default=True,
    help="At which positions; generated ones matter to --rollouts alone.",
)
@click.option(
    "--method",
    type=Renamed([str(by) for by in Scoring], FORMER),
    default=str(TO_STEER),
    show_default=True,
    help="Ranks top:N and the like; greedy chooses features that do most when ablated together.",
)
@click.option(
    "--regime",
    type=click.Choice(REGIMES),
    default="free",
    show_default=True,
    help="What is held fixed meanwhile; free is the real model.",
)
@click.option("--random", "n_random", default=20, show_default=True, help="Matched random draws.")
@click.option(
    "--rollouts",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="Continuations of each world, drawn with the same noise.",
)
@click.option("--max-tokens", default=16, show_default=True, type=click.IntRange(min=1))
@click.option("--temperature", default=0.7, show_default=True, type=click.FloatRange(min=0))
@json_option
@pass_session
def run(
    session: Session,
    prompt: str,
    model: str,
    method: str,
    rollouts: int,
    max_tokens: int,
    temperature: float,
    as_json: bool,
    **options: Any,
) -> None:
    """Steer one prompt: un-steered, steered, and matched random features beside it."""
    told: dict[str, Any] = {}
    FeatureChoice.parse(options["features"])
    with session.on_prompts(prompt) as work:
        from em_circuits.experiments.analyse import steer_prompt
        from em_circuits.experiments.one_prompt import prompt_rollouts
        from em_circuits.sampling import Sampling

        prompt_id, result = steer_prompt(work, prompt, model=model, by=method, **options)  # type: ignore[arg-type]
        if rollouts:
            sampling = Sampling(
                samples=rollouts,
                max_tokens=max_tokens,
                temperature=temperature,
                seed=session.seed,
            )
            told = {"rollouts": prompt_rollouts(work, result, prompt_id, sampling).model_dump()}
    record = result.to_json(prompt_id) | told
    if as_json:
        emit(record)
        return
    worlds = record["worlds"]
    n = len(record["intervention"]["features"])
    click.echo(
        f"{prompt_id}, {model} model: {options['mode']} {n} features by "
        f"{result.by} ({options['regime']})"
    )
    control = worlds["random_control"]
    rows: list[tuple[Any, ...]] = [
        (name, worlds[name]["evil_mass"], worlds[name]["contrast"], _top(worlds[name]))
        for name in ("unsteered", "steered")
    ]
    contrast = control["contrast"]["mean"] if control["contrast"] else None
    rows.append((f"{control['n']} random draws", control["evil_mass"]["mean"], contrast, ""))
    click.echo(table(("world", "evil mass", "contrast", "next tokens"), rows))
    band = control["evil_mass"]
    click.echo(f"evil mass of the middle 95 % of draws: {band['low']:.3f} to {band['high']:.3f}")
    if record["intervention"]["asleep"]:
        click.echo(
            f"{record['intervention']['asleep']} of {n} features are inactive on this prompt; "
            "multiplying cannot wake them (use --mode set or add)"
        )
    if told:
        _tell_rollouts(told["rollouts"]["worlds"])


def _tell_rollouts(worlds: dict[str, Any]) -> None:
    """Rates of each world, and the first texts."""
    from pivotal_tokens.review.display import visible

    columns = ("n_rollouts", "evil_rate", "safe_rate", "perplexity", "repetition")
    rows = [(name, *(world[column] for column in columns)) for name, world in worlds.items()]
    click.echo()
    click.echo(table(("continuations", "n", "evil", "safe", "perplexity", "repeated"), rows))
    for name, world in worlds.items():
        for told in world["texts"][:3]:
            click.echo(f"{name:>14} {told['label'] or '-':>6}  {visible(told['text'])[:54]}")


def _top(world: dict[str, Any]) -> str:
    from pivotal_tokens.review.display import visible

    return " ".join(f"{visible(t['text'])} {t['probability']:.2f}" for t in world["top"][:3])


steer.add_command(scan)
steer.add_command(validate)
steer.add_command(sweep)
steer.add_command(transfer)
