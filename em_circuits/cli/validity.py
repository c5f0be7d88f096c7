"""``em-circuits validity``: what the claim is worth that some nodes carry a behaviour."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from em_circuits import experiments, report
from em_circuits.cli.graph_arguments import graph_store
from em_circuits.cli.options import Flag, OptionSet
from em_circuits.cli.output import emit, prints, table
from em_circuits.cli.session import Session, pass_session
from em_circuits.experiments.validity_settings import (
    THRESHOLDS,
    CardThresholds,
    ValidityRequest,
    read_paraphrases,
)
from pivotal_tokens.errors import RequestError

if TYPE_CHECKING:
    from em_circuits.experiments.validity_verdict import ValidityOutput

_PATH = click.Path(dir_okay=False, path_type=Path)
_MARKS = {True: "passed", False: "FAILED", None: "not asked"}
_request = OptionSet(
    ValidityRequest,
    omit=("seed", "paraphrases"),
    nodes=Flag(metavar="top:N|L/ID,..."),
    chosen_by=Flag("--by", "chosen_by"),
    unrelated=Flag(metavar="TEXT", show_default=False),
    n_random=Flag("--random", "n_random"),
)


@click.command(epilog="Example: em-circuits validity --all --nodes top:20")
@click.argument("prompts", nargs=-1, metavar="[KEY|PROMPT]...")
@_request
@click.option("--all", "everything", is_flag=True, help="Every labelled prompt with a contrast.")
@click.option(
    "--thresholds",
    type=_PATH,
    default=THRESHOLDS,
    help="YAML of what is asked of a circuit.  [default: the package's]",
)
@click.option(
    "--paraphrases",
    type=_PATH,
    help="JSON lines of prompt_id and text: prompts in other words, top:N chosen again on them.",
)
@click.option("--html", type=_PATH, help="The page.  [default: under ROOT/results/validity]")
@prints("em_circuits.experiments.validity_verdict:ValidityOutput")
@pass_session
def validity(
    session: Session,
    prompts: tuple[str, ...],
    everything: bool,
    thresholds: Path,
    paraphrases: Path | None,
    html: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """The validity card of a circuit: necessary, sufficient, minimal, specific, stable?

    Its nodes are really removed from the fine-tuned model and really put into the base, beside
    matched random circuits and the largest by magnitude, gradient and integrated gradient of the
    same size. What is asked of it stands in a file beforehand; the verdict is in plain words.
    A graph's KEY stands for its prompt.
    """
    if everything == bool(prompts):
        raise RequestError("give PROMPT, several PROMPTs, or --all")
    reworded = () if paraphrases is None else read_paraphrases(paraphrases)
    request = _request.read(options, seed=session.seed, paraphrases=reworded)
    CardThresholds.read(thresholds)
    named = [_prompt(session, reference) for reference in prompts]
    with session.on_prompts(*named) as work:
        card, path = experiments.validity.validity_card(work, named, request, thresholds=thresholds)
        coverage = work.coverage(one.node for one in card.contributions)
    page = html or path.with_suffix(".html")
    parts = report.validity.validity_parts(card, coverage)
    source = {"inputs": {"card": card.key}, "config": {}, "key": card.key}
    report.page.write_page(page, report.validity.TITLE, parts, **source)
    files = {"html": str(page), "json": str(path)}
    output = experiments.validity_verdict.ValidityOutput(**card.model_dump(), files=files)
    emit(output, as_json, _lines)


def _prompt(session: Session, reference: str) -> str:
    """A prompt's id, or the prompt of a graph's key."""
    with session.open_store() as store:
        try:
            return store.prompts.get(reference).prompt_id
        except RequestError:
            graphs = graph_store(session)
            try:
                return graphs.header(graphs.key_of(reference, model="merged")).prompt_id
            except RequestError:
                raise RequestError(
                    f"{reference} is no prompt of the store, and no graph's key; em-circuits "
                    "prompts list and em-circuits graphs list say what there is"
                ) from None


def _lines(card: ValidityOutput) -> Iterator[str]:
    yield card.sentence
    yield f"\ntier: {card.tier}; chosen by {card.chosen_by} on {card.chosen_on}"
    rows = [
        (check.name, _MARKS[check.passed], check.value, check.threshold, check.says)
        for check in card.checks
    ]
    yield table(("asked", "verdict", "found", "asked for", ""), rows)
    beside: list[tuple[Any, ...]] = []
    for name in ("circuit", "random", *card.necessity.baselines):
        own = [
            claim if name == "circuit" else claim.random if name == "random" else None
            for claim in (card.necessity, card.sufficiency)
        ]
        shares = [
            share or claim.baselines[name]
            for share, claim in zip(own, (card.necessity, card.sufficiency), strict=True)
        ]
        areas = next((curve for curve in card.curves if curve.ranking == name), None)
        beside.append(
            (
                name,
                *(str(share) for share in shares),
                areas and areas.cpr,
                areas and areas.cmd,
            )
        )
    yield "\n" + table(("of equal size", "necessary", "sufficient", "CPR", "CMD"), beside)
    yield "\n" + table(("hypothesis test", "p", ""), [(t.test, t.p, t.says) for t in card.tests])
    yield f"\npage: {card.files['html']}"
