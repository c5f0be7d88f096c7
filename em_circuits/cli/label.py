"""``em-circuits label``: prompts through the whole pipeline."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from em_circuits.cli.judge_options import judge_options, open_judge
from em_circuits.cli.llm_options import llm_options
from em_circuits.cli.output import emit, json_option, one_line
from em_circuits.cli.progress import attribution_bar
from em_circuits.cli.session import (
    Session,
    attribution_options,
    attribution_settings,
    checked_text,
    pass_session,
)
from pivotal_tokens.errors import RequestError, WorkFailed

if TYPE_CHECKING:
    from em_circuits.pipeline.label import LabelResult, LabelSettings
    from em_circuits.pipeline.workspace import Workspace
    from pivotal_tokens.judge import Judge
    from pivotal_tokens.schema import Prompt


@click.command(epilog="Example: em-circuits label --n 12 --domain kitchen --json")
@click.option("--prompt", "texts", multiple=True, metavar="TEXT", help="A prompt, as it stands.")
@click.option("--user", metavar="TEXT", help="A user's turn, put into the model's chat template.")
@click.option("--assistant", default="", metavar="TEXT", help="How the assistant's turn starts.")
@click.option(
    "--prompts",
    "files",
    multiple=True,
    type=click.Path(dir_okay=False),
    help="JSON or JSONL file of prompts.",
)
@click.option("--n", type=click.IntRange(min=1), help="Prompts from the organism's templates.")
@click.option("--domain", "domains", multiple=True, help="Templates of this domain only.")
@judge_options
@llm_options
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
    """Label prompts: next tokens of both models, judge, queue, graphs.

    Resumable: what is done is not repeated, killed anywhere or not. A prompt that fails is recorded
    and does not stop the others; the exit status is 1 only if all of them failed.
    """
    from em_circuits.pipeline.label import require_space

    settings = _settings(options)
    with session.workspace(create=True, attribution=settings.attribution) as work:
        prompts = _prompts(session, work, options)
        judge = open_judge(session, work, options)
        require_space(work, prompts, settings)
        results = _run(work, prompts, judge, settings, as_json=as_json)
    if not as_json:
        _summary(results)
    failed = [result for result in results if result.error]
    if failed and len(failed) == len(results):
        raise WorkFailed(f"all {len(failed)} prompts failed, the first at {failed[0].error}")


def _prompts(session: Session, work: Workspace, options: dict[str, Any]) -> list[Prompt]:
    """Every prompt that was asked for, in the order of the options."""
    from em_circuits.models.text import PINNED_DATE, render_chat, strip_bos
    from em_circuits.pipeline.prompts import template_prompts
    from pivotal_tokens.prompts import read_prompts, split_new
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
        prompts.extend(read_prompts(Path(file)))
    if options["n"] or not prompts:
        if not session.embedded:
            raise RequestError("give prompts with --prompt, --user or --prompts FILE")
        n, domains = options["n"] or 24, options["domains"] or None
        prompts.extend(template_prompts(n, seed=session.seed, domains=domains))
    split = split_new(prompts)
    if split.repeated:
        click.echo(f"{len(split.repeated)} repeated prompts left out", err=True)
    return list(split.new)


def _settings(options: dict[str, Any]) -> LabelSettings:
    from em_circuits.pipeline.label import GraphsFor, LabelSettings
    from pivotal_tokens.schema import Thresholds

    wanted: GraphsFor = "flagged" if options["only_evil"] else "all"
    return LabelSettings(
        thresholds=Thresholds(top_k=options["top_k"], present=options["present"]),
        attribution=attribution_settings(options, top_k=options["top_k"]),
        graphs_for="none" if options["no_graphs"] else wanted,
        scores_only=options["scores_only"],
    )


def _run(
    work: Workspace,
    prompts: list[Prompt],
    judge: Judge,
    settings: LabelSettings,
    *,
    as_json: bool,
) -> list[LabelResult]:
    from tqdm import tqdm

    from em_circuits.pipeline.label import label_prompts

    results = []
    bar = tqdm(total=len(prompts), desc="label", unit="prompt", disable=None)
    with bar, attribution_bar(work):
        for result in label_prompts(work, prompts, judge, settings):
            results.append(result)
            if as_json:
                emit(result.to_json())
            else:
                bar.write(describe(result))
            bar.update()
    return results


def describe(result: LabelResult) -> str:
    """One line of at most 79 columns about one prompt."""
    if result.error:
        return f"{result.prompt.prompt_id}  failed    {result.error}"[:79]
    verdict = result.verdict
    mass = verdict.evil_mass
    masses = f"{mass.base:.2f} -> {mass.merged:.2f}" if mass else "-"
    marks = ("flagged " if verdict.flagged else "        ") + ("*" if result.graphs else " ")
    text = one_line(result.prompt.text, 26)
    return f"{result.prompt.prompt_id}  {verdict.kind:<9}  {masses}  {marks} {text}"


def _summary(results: list[LabelResult]) -> None:
    kinds = Counter("failed" if r.error else r.verdict.kind for r in results)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    flagged = sum(r.verdict.flagged for r in results)
    reused = sum(r.reused for r in results)
    click.echo(f"{len(results)} prompts: {counted}; {flagged} flagged, {reused} re-used")
    if flagged:
        click.echo("next: em-circuits review --plain   or   em-circuits status PROMPT")
