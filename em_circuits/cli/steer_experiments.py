"""``em-circuits steer sweep`` and ``steer transfer``: planned experiments with records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from em_circuits.cli.judge_options import llm_budget, llm_options, llm_settings
from em_circuits.cli.output import emit, json_option, table
from em_circuits.cli.session import Session, pass_session
from pivotal_tokens.errors import RequestError

if TYPE_CHECKING:
    from em_circuits.experiments.cases import Cases
    from em_circuits.experiments.experiment import Experiment
    from em_circuits.experiments.summary import SteeringSummary
    from em_circuits.workspace import Workspace
    from pivotal_tokens.judge.continuations import ContinuationJudge

_JUDGES = (
    click.option(
        "--judge", metavar="lexicon:FILE", help="Labels tokens of prompts that have no labels yet."
    ),
    click.option(
        "--rollout-judge",
        default="labels",
        show_default=True,
        metavar="labels|openai:MODEL",
        help="Of continuations: their first token's label, or a model that reads them.",
    ),
)


def judges_option(command: Any) -> Any:
    """Who labels tokens, and who continuations."""
    for option in reversed(_JUDGES):
        command = option(command)
    return llm_options(command)


@click.command(epilog="Example: em-circuits steer sweep --plan examples/pad_thai.yaml")
@click.option(
    "--plan",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="YAML: features, strengths, positions, combinations; docs/steering.md.",
)
@judges_option
@json_option
@pass_session
def sweep(session: Session, file: Path, judge: str | None, as_json: bool, **options: Any) -> None:
    """Features x strengths x positions x combinations, with controls and a report."""
    if not file.is_file():
        raise RequestError(f"cannot read the plan {file}: No such file")

    from em_circuits.experiments.plan import load_plan
    from em_circuits.experiments.sweep import run_sweep

    plan = load_plan(file)
    with session.workspace(create=options["rollout_judge"] != "labels") as work:
        cases = _cases(session, work, judge)
        experiment = run_sweep(cases, plan, _rollout_judge(work, options))
    _show(experiment, as_json=as_json)


@click.command(
    epilog="Example: em-circuits steer transfer --found-on organism:14:medical "
    "--tried-on organism:30 --name unseen"
)
@click.option("--name", default="transfer", show_default=True, help="Of the folder of results.")
@click.option(
    "--found-on",
    multiple=True,
    required=True,
    metavar="PROMPT|organism:N[:DOMAIN,...]",
    help="Prompts whose features are pooled by id; repeatable.",
)
@click.option(
    "--tried-on",
    multiple=True,
    required=True,
    metavar="PROMPT|organism:N[:DOMAIN,...]",
    help="Prompts they are tried on; repeatable.",
)
@click.option("-k", default=10, show_default=True, type=click.IntRange(min=1), help="Features.")
@click.option(
    "--multiple",
    "multiples",
    multiple=True,
    type=float,
    default=(1.0, 3.0),
    show_default=True,
    help="Of the merged activation, set in the base; repeatable.",
)
@click.option("--random", "n_random", default=20, show_default=True, help="Matched random draws.")
@click.option(
    "--rollouts",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="Continuations of each treatment.",
)
@judges_option
@json_option
@pass_session
def transfer(
    session: Session,
    name: str,
    found_on: tuple[str, ...],
    tried_on: tuple[str, ...],
    judge: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Features found on some prompts tried on others, and base features at merged values."""
    from pydantic import ValidationError

    from em_circuits.experiments.plan import TransferPlan, first_problem, parse_source
    from em_circuits.experiments.transfer import run_transfer
    from em_circuits.sampling import Sampling

    n = options["rollouts"]
    try:
        plan = TransferPlan(
            name=name,
            found_on=parse_source(found_on, seed=session.seed),
            # Other prompts than those the features are found on.
            tried_on=parse_source(tried_on, seed=session.seed + 1),
            k=options["k"],
            multiples=options["multiples"],
            random=options["n_random"],
            rollouts=Sampling(samples=n, seed=session.seed) if n else None,
            seed=session.seed,
        )
    except ValidationError as error:
        raise RequestError(f"steer transfer: {first_problem(error)}") from error
    with session.workspace(create=options["rollout_judge"] != "labels") as work:
        cases = _cases(session, work, judge)
        experiment = run_transfer(cases, plan, _rollout_judge(work, options))
    _show(experiment, as_json=as_json)


def _cases(session: Session, work: Workspace, judge: str | None) -> Cases:
    from em_circuits.cli.judge_options import open_offline_judge
    from em_circuits.experiments.cases import Cases

    return Cases(work, open_offline_judge(session, work, judge))


def _rollout_judge(work: Workspace, options: dict[str, Any]) -> ContinuationJudge:
    """The judge of continuations that is named.

    Raises:
        RequestError: If there is no such judge, or its key or price is missing.
    """
    from pivotal_tokens.judge.continuations import LabelJudge, ModelContinuations

    kind, _, name = options["rollout_judge"].partition(":")
    if kind == "labels" and not name:
        return LabelJudge()
    if kind != "openai" or not name:
        raise RequestError(
            f"no judge {options['rollout_judge']!r} of continuations; "
            "there are labels and openai:MODEL"
        )
    return ModelContinuations(llm_settings(name, options), work.store, llm_budget(options))


def _show(experiment: Experiment[SteeringSummary], *, as_json: bool) -> None:
    """Write the report, and print what came out."""
    from em_circuits.report.sweep import largest_first, write_sweep_report

    page, summary = write_sweep_report(experiment), experiment.summary
    if as_json:
        files = {"folder": str(experiment.folder), "report": str(page)}
        emit({**summary.model_dump(mode="json"), "files": files})
        return
    largest = largest_first(summary.conditions)[:12]
    columns = ("condition", "change", "net", "low", "high", "q")
    click.echo(table(columns, [tuple(getattr(line, c) for c in columns) for line in largest]))
    if len(summary.conditions) > len(largest):
        click.echo(f"... and {len(summary.conditions) - len(largest)} more in the report")
    click.echo("change of evil mass; net of matched random features, 95 % interval")
    click.echo(summary.said)
    click.echo(f"written: {page}")
