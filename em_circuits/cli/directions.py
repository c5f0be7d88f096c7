"""``em-circuits directions``: a mean difference of the residual stream, and what it does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import click

from em_circuits import experiments
from em_circuits.audit.suite import load_suite
from em_circuits.cli.evaluate import answer_judge
from em_circuits.cli.judge_options import llm_options
from em_circuits.cli.options import Flag, Options, OptionSet, options
from em_circuits.cli.output import emit, prints, table
from em_circuits.cli.responses import find_import
from em_circuits.cli.session import Session, pass_session
from em_circuits.experiments.requests import DirectionRequest
from em_circuits.organisms.paths import ORGANISMS, organism_paths
from pivotal_tokens.errors import RequestError
from pivotal_tokens.judge import JudgeSpec

if TYPE_CHECKING:
    from em_circuits.experiments.directions import DirectionOutput
    from em_circuits.models import ModelPair


_request = OptionSet(
    DirectionRequest,
    omit=("seed",),
    doses=Flag("--dose", "doses", metavar="SHARE"),
    n_random=Flag("--random", "n_random"),
)


class TrialOptions(Options):
    """Who judges sampled answers, and which fine-tunes are compared."""

    judge: Annotated[str | None, Flag(metavar="lexicon:FILE|openai:MODEL")] = None
    """Who scores sampled answers. [default: the organism's word list]"""
    judge_prompt: Annotated[str, Flag(metavar="VERSION|FILE")] = "v1"
    """Instructions of a model judge."""
    others: Annotated[tuple[str, ...], Flag("--also", "others", metavar="ADAPTER")] = ()
    """Another fine-tune of the same base, for the transfer: an adapter, or an organism's name."""


@click.command(epilog="Example: em-circuits directions em --samples 4")
@click.argument("name", required=False)
@_request
@options(TrialOptions)
@llm_options
@prints("em_circuits.experiments.directions:DirectionOutput")
@pass_session
def directions(
    session: Session, name: str | None, options: TrialOptions, as_json: bool, **others: Any
) -> None:
    """Mean-difference direction of the residual stream, found and tried on judged answers.

    NAME is an import of answers.  [default: the newest]
    """
    request, llm = _request.read(others, seed=session.seed), _request.without(others)
    imported = find_import(session.root / "results" / "responses", name)
    with ExitStack() as stack:
        work = stack.enter_context(session.workspace(create=(options.judge or "").startswith("o")))
        judge = None
        if request.samples:
            if options.judge is None and not session.templated:
                raise RequestError("--samples needs --judge openai:MODEL for this model")
            spec = JudgeSpec.parse(session.judge_spec(options.judge))
            judge = answer_judge(session, work, spec, options.judge, options.judge_prompt, llm)
        pairs = {one: stack.enter_context(_fine_tune(session, one)) for one in options.others}
        unrelated = load_suite("toy" if session.templated else "open").capability
        found = experiments.directions.find_directions(
            work, imported, request, judge=judge, others=pairs, unrelated=unrelated
        )
    kind = experiments.directions.DirectionOutput
    emit(kind.model_validate(found.head()), as_json, describe_directions)


def _fine_tune(session: Session, adapter: str) -> ModelPair:
    """The pair of the session's base and another adapter."""
    from em_circuits.models.pair import ModelPair

    path = str(organism_paths(adapter).adapter) if adapter in ORGANISMS else adapter
    settings = session.models().model_copy(update={"adapter": path, "merged": None})
    try:
        return ModelPair.load(settings)
    except RequestError as error:
        raise RequestError(str(error).replace("--adapter", "--also", 1)) from error


def describe_directions(found: DirectionOutput) -> Iterator[str]:
    """What the direction reads as, what its edits do, and where it transfers."""
    yield (
        f"{found.request.kind}, {found.questions} questions, tried on {found.held_out_questions} "
        f"others; behind layer {found.layer}"
    )
    yield f"promotes {' '.join(map(repr, found.promoted))}"
    yield f"suppresses {' '.join(map(repr, found.suppressed))}"
    if (added := found.unrelated) is not None:
        yield (
            f"merged minus base on {added.texts} unrelated texts there "
            f"({added.relative:.1%} of the stream, cosine {added.cosine:+.2f}) promotes "
            f"{' '.join(map(repr, added.promoted))}"
        )
    yield "nodes along it: " + ", ".join(f"{n.node} {n.cosine:+.2f}" for n in found.nodes[:6])
    yield f"shift (merged minus base): {found.shift:+.3f} nats per token"
    if found.shift <= 0:
        yield (
            "the fine-tune makes these misaligned answers no likelier beside the aligned ones: no "
            "share is known"
        )
    rows = [
        (
            f"{e.model}, {e.edit}" + ("" if e.dose is None else f" {e.dose:g}"),
            *(e.share, e.low, e.high, e.random_low, e.random_high, e.rate, e.random_rate),
        )
        for e in found.effects
    ]
    header = ("edit", "share", "low", "high", "random", "to", "rate", "random's")
    yield table(header, rows)
    if found.judge is not None:
        rates = ", ".join(
            f"{name} {rate:.1%}" for name, rate in found.rates.items() if rate is not None
        )
        yield f"misaligned answers un-edited: {rates}"
    for what, lines in (("domains", found.domains), ("fine-tunes", found.adapters)):
        if lines:
            yield f"\nshare removed by the direction of one of the {what} (rows) in another"
            names = list(dict.fromkeys(line.found_on for line in lines))
            cells = {(line.found_on, line.tried_on): line.share for line in lines}
            yield table(("found on", *names), [(a, *(cells[a, b] for b in names)) for a in names])
    yield f"{'kept' if found.reused else 'written'}: {found.files['json']}"
