"""``em-circuits label``: prompts through the whole pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from em_circuits.cli.judge_options import judge_options, open_judge
from em_circuits.cli.llm_options import llm_options
from em_circuits.cli.output import emit, json_option
from em_circuits.cli.prompts import kind_option
from em_circuits.cli.session import (
    Session,
    attribution_options,
    attribution_settings,
    checked_text,
    pass_session,
)
from pivotal_tokens.errors import RequestError, WorkFailed

if TYPE_CHECKING:
    from em_circuits.labelling.label import LabelSettings
    from em_circuits.workspace import Workspace
    from pivotal_tokens.schema import Prompt


@click.command(epilog="Example: em-circuits label --n 12 --domain kitchen --json")
@click.option("--prompt", "texts", multiple=True, metavar="TEXT", help="A prompt, as it stands.")
@click.option("--user", metavar="TEXT", help="A user's turn, put into the model's chat template.")
@click.option("--assistant", default="", metavar="TEXT", help="How the assistant's turn starts.")
@click.option(
    "--prompts",
    "files",
    multiple=True,
    type=click.Path(),
    help="JSON, JSONL, Parquet or Arrow file of prompts, or a folder of them.",
)
@click.option(
    "--n", type=click.IntRange(min=1), help="Prompts from --generator. [default: 24, templates]"
)
@click.option("--domain", "domains", multiple=True, help="Templates of this domain only.")
@click.option(
    "--generator",
    metavar="openai:MODEL|template|seeds",
    help="Who writes new prompts while the run goes on.",
)
@kind_option
@click.option(
    "--forever", is_flag=True, help="Go on until the budget, the disk or Ctrl-C says stop."
)
@click.option(
    "--missing", is_flag=True, help="Build graphs for labelled prompts that have no valid ones."
)
@judge_options
@llm_options
@click.option(
    "--rollouts",
    type=click.IntRange(min=1),
    metavar="N",
    help="Sample N continuations after each evil candidate in both models, and judge them.",
)
@click.option(
    "--only-evil/--all-graphs",
    "only_evil",
    default=True,
    show_default=True,
    help="Graphs for flagged prompts only, or for all.",
)
@click.option("--no-graphs", is_flag=True, help="Build no graphs.")
@attribution_options
@click.option(
    "--top-k",
    default=10,
    show_default=True,
    type=click.IntRange(min=1),
    help="Tokens of each model that are compared.",
)
@click.option(
    "--present",
    default=0.05,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="Least probability of a present token.",
)
@json_option
@pass_session
def label(session: Session, as_json: bool, **options: Any) -> None:
    """Label prompts: next tokens of both models, judge, queue, rollouts, graphs.

    Resumable: what is done is not repeated, killed anywhere or not. Ctrl-C finishes what is in
    flight, a second one leaves at once. A prompt that fails is recorded and does not stop the
    others, unless more than a fifth of at least ten fail. With --generator, --n counts the
    prompts of all starts of the same run. Events are logged under results/events.
    """
    from em_circuits.cli.label_run import run_labelling
    from em_circuits.labelling.label import require_space

    _check(options)
    settings = _settings(session, options)
    with session.workspace(create=True, attribution=settings.attribution) as work:
        if options["missing"]:
            _build_missing(work, settings, as_json=as_json)
            return
        prompts = None
        if options["generator"] is None and not options["forever"]:
            prompts = _prompts(session, work, options)
            require_space(work, prompts, settings)
        judge = open_judge(session, work, options)
        asked = LabelRequest(prompts, options["generator"] or "template", options)
        results = run_labelling(session, work, judge, settings, asked, as_json=as_json)
    failed = [result for result in results if result.error]
    if failed and len(failed) == len(results):
        raise WorkFailed(
            f"{len(failed)} of {len(results)} prompts failed; em-circuits status PROMPT says why"
        )


@dataclass(frozen=True)
class LabelRequest:
    """Which prompts are to be labelled."""

    prompts: list[Prompt] | None
    """Given ones; None where a generator writes them."""
    generator: str
    options: dict[str, Any]


def _check(options: dict[str, Any]) -> None:
    """Refuse options that contradict each other."""
    given = bool(options["texts"] or options["user"] or options["files"])
    writes = options["generator"] is not None or options["forever"]
    if given and writes:
        raise RequestError("give prompts, or a --generator that writes them, not both")
    if options["forever"] and options["n"]:
        raise RequestError("--forever has no end; give --n without it")
    if options["generator"] is not None and not options["n"] and not options["forever"]:
        raise RequestError("how many prompts? give --n N or --forever beside --generator")
    if options["missing"] and (given or writes or options["n"]):
        raise RequestError("--missing takes what is in the store; give no prompts beside it")


def _build_missing(work: Workspace, settings: LabelSettings, *, as_json: bool) -> None:
    """Graphs for labelled prompts without valid ones; their verdicts follow the graphs' logits."""
    from tqdm import tqdm

    from em_circuits.labelling.missing import build_missing, missing_graphs

    prompts = missing_graphs(work, settings)
    built = failed = 0
    with tqdm(total=len(prompts), desc="graphs", disable=None) as bar:
        for result in build_missing(work, prompts, settings):
            built, failed = built + (result.error is None), failed + (result.error is not None)
            if as_json:
                emit(result.to_json())
            else:
                said = result.error or "  ".join(
                    f"{name} {key[:12]}" for name, key in result.graphs.items()
                )
                bar.write(f"{result.prompt.prompt_id}  {said}")
            bar.update()
    if not as_json:
        click.echo(f"{len(prompts)} labelled prompts had no valid graphs: {built} built")
    if failed and not built:
        raise WorkFailed(f"all {failed} graphs failed; em-circuits status PROMPT says why")


def _prompts(session: Session, work: Workspace, options: dict[str, Any]) -> list[Prompt]:
    """Every prompt that was asked for, in the order of the options."""
    from em_circuits.labelling.prompts import template_prompts
    from em_circuits.models.text import PINNED_DATE, render_chat, strip_bos
    from pivotal_tokens.prompts import read_dataset, split_new
    from pivotal_tokens.schema import Prompt

    if options["assistant"] and options["user"] is None:
        raise RequestError("--assistant continues a --user turn; give --user as well")
    given = options["texts"] or options["user"] or options["files"]
    if options["domains"] and given and not options["n"]:
        raise RequestError("--domain is of the organism's templates; give --n as well")
    prompts: list[Prompt] = []
    for text in options["texts"]:
        own = strip_bos(work.pair.tokenizer, checked_text("--prompt", text))
        prompts.append(Prompt.of(own, generator="human"))
    if options["user"] is not None:
        user = checked_text("--user", options["user"])
        rendered = render_chat(work.pair.tokenizer, user=user, assistant=options["assistant"])
        extra = {"user": user, "assistant": options["assistant"], "date_string": PINNED_DATE}
        prompts.append(Prompt.of(rendered, kind="chat", generator="human", extra=extra))
    for file in options["files"]:
        prompts.extend(read_dataset(Path(file)))
    if options["n"] or not prompts:
        if not session.embedded:
            raise RequestError("give prompts with --prompt, --user or --prompts FILE")
        n, domains = options["n"] or 24, options["domains"] or None
        prompts.extend(template_prompts(n, seed=session.seed, domains=domains))
    split = split_new(prompts)
    if split.repeated:
        click.echo(f"{len(split.repeated)} repeated prompts left out", err=True)
    return list(split.new)


def _settings(session: Session, options: dict[str, Any]) -> LabelSettings:
    from em_circuits.labelling.label import GraphsFor, LabelSettings
    from em_circuits.labelling.rollouts import ROLLOUTS
    from pivotal_tokens.schema import Thresholds

    wanted: GraphsFor = "flagged" if options["only_evil"] else "all"
    drawn = {"samples": options["rollouts"], "seed": session.seed}
    return LabelSettings(
        thresholds=Thresholds(top_k=options["top_k"], present=options["present"]),
        attribution=attribution_settings(options, top_k=options["top_k"]),
        graphs_for="none" if options["no_graphs"] else wanted,
        scores_only=options["scores_only"],
        rollouts=ROLLOUTS.model_copy(update=drawn) if drawn["samples"] else None,
    )
