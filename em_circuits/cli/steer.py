"""``em-circuits steer``: interventions on the real model, and what it says under them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import click
from pydantic import BaseModel, Field, ValidationError, model_validator

from em_circuits import experiments, interventions, report
from em_circuits.cli.judge_options import (
    llm_budget,
    llm_options,
    llm_settings,
    open_offline_judge,
)
from em_circuits.cli.options import Flag, Options, OptionSet, Renamed, SectionedCommand, options
from em_circuits.cli.output import emit, prints, say, table
from em_circuits.cli.session import Session, engine_options, in_pieces, pass_session
from em_circuits.cli.two_judges import describe_two_judges
from em_circuits.engine.settings import EngineSettings
from em_circuits.feature import FeatureChoice
from em_circuits.intervention import MIN_DRAWS, Mode, Unit, Where, check_value
from em_circuits.sampling import Sampling
from em_circuits.scoring import FORMER, TO_STEER, Scoring
from em_circuits.target_request import TargetRequest
from pivotal_tokens.artefacts import content_key, sha256_file, write_json, write_provenance
from pivotal_tokens.errors import RequestError
from pivotal_tokens.judge import JudgeSpec
from pivotal_tokens.judge.continuations import (
    ContinuationJudge,
    LabelJudge,
    ModelContinuations,
    continuation_judge,
)
from pivotal_tokens.review.display import visible
from pivotal_tokens.schema import ModelName, first_problem

if TYPE_CHECKING:
    from em_circuits.experiments.cases import Cases
    from em_circuits.experiments.experiment import Experiment
    from em_circuits.experiments.plan import SweepPlan, TransferPlan
    from em_circuits.experiments.rejudge_steering import SteeringRejudgement
    from em_circuits.experiments.scan import Pairs, PromptScan
    from em_circuits.experiments.summary import SteeringSummary
    from em_circuits.experiments.validate import (
        EdgeValidationOutput,
        Validation,
        ValidationOutput,
    )
    from em_circuits.experiments.validate_edges import EdgeValidation, PromptEdges
    from em_circuits.interventions.steer_result import ConditionTexts, Outcome, SteerResult
    from em_circuits.workspace import Workspace

SHOWN, SHOWN_TARGETS = 15, 4
MOST_VALIDATED = 6
"""Prompts that are taken where none is named."""
VALIDATED_NODES = 200
"""Features among which edges are compared by default."""

RegimeName = Literal["free", "attention_frozen", "gates_recomputed", "frozen_linear", "direct"]

Output = TypeVar("Output", bound=BaseModel)

_FIGURES = ("pearson", "low", "high", "spearman", "sign", "top20")
_SOURCE = "PROMPT|organism:N[:DOMAIN,...]"


class RunOptions(Options, TargetRequest):
    """What is changed on one prompt, and what is measured then."""

    model: ModelName = "merged"
    """Which model."""
    features: Annotated[str, Flag(metavar="top:N|bottom:N|abs:N|L/POS/ID,...")] = "top:10"
    """Which features; also top:[2,7], L/-1/ID from the end, L/ID wherever it fires, and L/POS/ID=5
    with a value of its own."""
    mode: Mode = Mode.ABLATE
    """What becomes of their activation."""
    value: float | None = None
    """Needed by set, add, scale and clamp."""
    unit: Annotated[Unit, Flag(type=Renamed(Unit, {"own": Unit.RELATIVE}))] = Unit.ABSOLUTE
    """Of the value: as it is, or relative to the feature's own activation."""
    at: Where = Where.FOUND
    """At which positions; generated ones matter to --rollouts alone."""
    method: Annotated[Scoring, Flag(type=Renamed(Scoring, FORMER))] = TO_STEER
    """Ranks top:N and the like; greedy chooses features that do most when ablated together."""
    regime: RegimeName = "free"
    """What is held fixed meanwhile; free is the real model."""
    n_random: Annotated[int, Field(ge=MIN_DRAWS), Flag("--random", "n_random")] = MIN_DRAWS
    """Matched random draws."""
    rollouts: int = Field(default=0, ge=0)
    """Continuations under each condition, drawn with the same noise."""
    max_tokens: int = Field(default=16, ge=1)
    """Of a continuation."""
    temperature: float = Field(default=0.7, ge=0)
    """Of the continuations."""

    @model_validator(mode="after")
    def _check(self) -> RunOptions:
        choice = FeatureChoice.parse(self.features)
        for value in choice.values or (self.value,):
            own = self.value if value is None else value
            check_value(self.mode, own, self.unit, where="--mode and --value")
        if choice.values and self.mode is Mode.ABLATE:
            raise RequestError(f"--features {choice}: ablating has no value; add --mode set")
        if self.is_given and self.method.from_graph:
            raise RequestError(f"--method {self.method} reads a graph of next tokens, not a target")
        return self


class ScanOptions(Options):
    """Which features of one prompt are shown."""

    model: ModelName = "merged"
    """Which model."""
    top: int | None = Field(default=None, ge=1)
    """Show only the N most positive."""
    pairs: Annotated[int | None, Field(ge=2, le=100), Flag(metavar="K")] = None
    """Ablate the K most positive two by two as well."""
    regime: RegimeName = "free"
    """What is held fixed meanwhile; free is the real model."""


class ValidateOptions(Options):
    """What is compared, and where the plots go."""

    model: ModelName = "merged"
    """Which model."""
    regimes: Annotated[tuple[RegimeName, ...], Flag("--regime", "regimes")] = ()
    """Only these. [default: all five]"""
    only_divergent: bool = False
    """Leave out prompts whose verdict is neither injection nor promotion."""
    edges: bool = False
    """Compare edges with really removing their source, instead of scores with ablations."""
    nodes: Annotated[int | None, Field(ge=2)] = None
    """Features among which edges are compared: the largest gradients. [default: 200]"""
    html: Annotated[str | None, Flag(type=click.Path(dir_okay=False))] = None
    """The page with the plots. [default: under ROOT/results/validation]"""


class JudgesOptions(Options):
    """Who labels tokens, and who continuations; a command needs `llm_options` too."""

    judge: Annotated[str | None, Flag(metavar="lexicon:FILE")] = None
    """Labels tokens of prompts that have no labels yet."""
    rollout_judge: Annotated[str, Flag(metavar="labels|openai:MODEL")] = "labels"
    """Of continuations: their first token's label, or a model that reads them."""
    only_divergent: bool = False
    """Leave out prompts whose verdict is neither injection nor promotion."""


class TransferOptions(Options):
    """Where features are found, and where they are tried."""

    name: str = "transfer"
    """Of the folder of results."""
    found_on: Annotated[tuple[str, ...], Flag(metavar=_SOURCE)]
    """Prompts whose features are pooled by id; repeatable."""
    tried_on: Annotated[tuple[str, ...], Flag(metavar=_SOURCE)]
    """Prompts they are tried on; repeatable."""
    k: Annotated[int, Field(ge=1), Flag("-k")] = 10
    """Features."""
    multiples: Annotated[tuple[float, ...], Flag("--multiple", "multiples")] = (1.0, 3.0)
    """Of the merged activation, set in the base; repeatable."""
    n_random: Annotated[int, Field(ge=MIN_DRAWS), Flag("--random", "n_random")] = MIN_DRAWS
    """Matched random draws."""
    rollouts: int = Field(default=0, ge=0)
    """Continuations of each treatment."""


judges_options = OptionSet(JudgesOptions)
_NOT_STEERING = {"method", "rollouts", "max_tokens", "temperature", *TargetRequest.model_fields}


@click.group()
def steer() -> None:
    """Interventions on the model itself, with controls."""


@steer.command(epilog="Example: em-circuits steer run 44a71b --features top:10 --mode ablate")
@click.argument("prompt")
@options(RunOptions)
@prints("em_circuits.interventions.steer_result:AnySteering")
@pass_session
def run(session: Session, prompt: str, options: RunOptions, as_json: bool) -> None:
    """Steer one prompt: un-steered, steered, and matched random features beside it."""
    with session.on_prompts(prompt) as work:

        def steered() -> dict[str, Any]:
            result = experiments.analyse.steer_prompt(
                work,
                prompt,
                by=options.method,
                target=options,
                **options.model_dump(exclude=_NOT_STEERING),
            )
            record = result.model_dump(mode="json")
            if options.rollouts:
                sampling = Sampling(
                    samples=options.rollouts,
                    max_tokens=options.max_tokens,
                    temperature=options.temperature,
                    seed=session.seed,
                )
                drawn = experiments.rollouts.prompt_rollouts(work, result, sampling)
                record["rollouts"] = drawn.model_dump(mode="json")
            return record

        if options.rollouts_judged:
            record = steered()
        else:
            settings = options.model_dump(mode="json", exclude={"model"})
            asked = experiments.kept.Asked.of(
                work, prompt, "steer", model=options.model, settings=settings
            )
            record = experiments.kept.answered(work, asked, steered).result
    from em_circuits.interventions.steer_result import SteerResult, SteerWithRollouts

    kind = SteerWithRollouts if options.rollouts else SteerResult
    emit(kind.model_validate(record), as_json, partial(describe_run, options=options))


@steer.command(epilog="Example: em-circuits steer scan 44a71b --top 10 --pairs 10")
@click.argument("prompt", nargs=-1, required=True, metavar="PROMPT|PROMPT...")
@options(ScanOptions)
@engine_options
@prints("em_circuits.experiments.scan:PromptScan", lines=True)
@pass_session
def scan(
    session: Session,
    prompt: tuple[str, ...],
    options: ScanOptions,
    engine: EngineSettings,
    as_json: bool,
) -> None:
    """Ablate every active feature of each prompt for real: effect on each labelled token.

    An effect is that of the feature's presence, in logits: positive raises the token, or the
    contrast of evil and safe tokens.
    """
    with session.on_prompts(*prompt, by_workers=engine.spreads) as work:
        found = in_pieces(work, engine, partial(_scanned, prompt, options))
    for scanned in found:
        if as_json:
            shown = {"features": scanned.features[: options.top]}
            scanned = scanned.model_copy(update=shown)
        emit(scanned, as_json, partial(describe_scan, n=options.top or SHOWN))


def _scanned(prompts: Sequence[str], options: ScanOptions, work: Workspace) -> list[PromptScan]:
    kept, settings = experiments.kept, options.model_dump(mode="json", exclude={"top", "model"})

    def scan_now(prompt_id: str) -> dict[str, Any]:
        found = experiments.scan.scan_prompt(
            work,
            prompt_id,
            model=options.model,
            n_pairs=options.pairs or 0,
            regime=interventions.Regime(options.regime),
        )
        return found.model_dump(mode="json")

    asked = [
        kept.Asked.of(work, one, "scan", model=options.model, settings=settings) for one in prompts
    ]
    works = {
        one.key: partial(kept.answered, work, one, partial(scan_now, one.prompt_id))
        for one in asked
    }
    left = [one.key for one in asked if kept.stored(work, one) is None]
    work.portion.do(works, left, "scan", work.progress)
    results = [works[one.key]().result for one in asked]
    return [experiments.scan.PromptScan.model_validate(result) for result in results]


@steer.command(epilog="Example: em-circuits steer validate 44a71b --regime free --json")
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@options(ValidateOptions)
@prints("em_circuits.experiments.validate:AnyValidation")
@pass_session
def validate(
    session: Session, prompts: tuple[str, ...], options: ValidateOptions, as_json: bool
) -> None:
    """Every score against real ablations: how well it predicts them.

    With --edges, full and frozen edges against measured ones: a source is removed, all other nodes
    are held, and the target read, everywhere in the graph.

    Without PROMPT, the first six prompts with graphs. Writes a page with plots that
    opens without a network, and the JSON beside it.
    """
    if options.edges and options.regimes:
        raise RequestError("--edges are measured with all other nodes held; leave out --regime")
    if options.nodes is not None and not options.edges:
        raise RequestError("--nodes is of --edges; scores are compared on every node of a graph")
    page = Path(options.html) if options.html is not None else None
    if page is not None and page.suffix not in (".html", ".htm"):
        raise RequestError(f"--html {page}: name a file that ends in .html")
    with session.on_prompts(*prompts) as work:
        wanted = [interventions.Regime(name) for name in options.regimes]
        wanted = wanted or list(interventions.Regime)
        chosen = _validated(work, prompts, only_divergent=options.only_divergent)
        if options.edges:
            validation, each = experiments.validate_edges.validate_edges(
                work, chosen, model=options.model, nodes=options.nodes or VALIDATED_NODES
            )
            edges = _write_edge_validation(work, validation, each, page)
            emit(edges, as_json, describe_edge_validation)
            return
        result = experiments.validate.validate(work, chosen, model=options.model, regimes=wanted)
        scores = _write_validation(work, result, page)
    emit(scores, as_json, partial(describe_validation, regimes=[*map(str, reversed(wanted))]))


def _validated(work: Workspace, prompts: Sequence[str], *, only_divergent: bool) -> tuple[str, ...]:
    """The prompts that are named, or the first with graphs; of these the divergent ones."""
    graphs = () if prompts else work.store.graphs.all(pair=work.pair.key)
    known = [work.store.prompts.get(prompt).prompt_id for prompt in prompts]
    known = list(dict.fromkeys(known or [record.prompt_id for record in graphs]))
    if not known:
        raise RequestError("no prompt has graphs yet; run em-circuits label first")
    if only_divergent:
        divergent = work.store.queries.divergent(work.pair.key)
        known = [prompt for prompt in known if prompt in divergent]
        if not known:
            raise RequestError("no such prompt is divergent; leave --only-divergent out")
    return tuple(known if prompts else known[:MOST_VALIDATED])


@steer.command(
    cls=SectionedCommand, epilog="Example: em-circuits steer sweep --plan examples/pad_thai.yaml"
)
@click.option(
    "--plan",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="YAML: features, strengths, positions, combinations; docs/steering.md.",
)
@judges_options
@llm_options
@engine_options
@prints("em_circuits.experiments.summary:SteeringOutput")
@pass_session
def sweep(
    session: Session, file: Path, engine: EngineSettings, as_json: bool, **judges: Any
) -> None:
    """Features x strengths x positions x combinations, with controls and a report."""
    if not file.is_file():
        raise RequestError(f"cannot read the plan {file}: No such file")
    plan = experiments.plan.load_plan(file)
    _report(_carry_out(session, "sweep", plan, judges, engine), as_json)


@steer.command(
    cls=SectionedCommand,
    epilog="Example: em-circuits steer transfer --found-on organism:14:medical "
    "--tried-on organism:30 --name unseen",
)
@options(TransferOptions)
@judges_options
@llm_options
@engine_options
@prints("em_circuits.experiments.summary:SteeringOutput")
@pass_session
def transfer(
    session: Session,
    options: TransferOptions,
    engine: EngineSettings,
    as_json: bool,
    **judges: Any,
) -> None:
    """Features found on some prompts tried on others, and base features at merged values."""
    n, plans = options.rollouts, experiments.plan
    try:
        plan = plans.TransferPlan(
            name=options.name,
            found_on=plans.parse_source(options.found_on, seed=session.seed),
            # Other prompts than those the features are found on.
            tried_on=plans.parse_source(options.tried_on, seed=session.seed + 1),
            k=options.k,
            multiples=options.multiples,
            random=options.n_random,
            rollouts=Sampling(samples=n, seed=session.seed) if n else None,
            seed=session.seed,
        )
    except ValidationError as error:
        raise RequestError(f"steer transfer: {first_problem(error)}") from error
    _report(_carry_out(session, "transfer", plan, judges, engine), as_json)
    if not as_json:
        say(session.card_hint(f"top:{options.k}"))


class RejudgeOptions(Options):
    """Who reads the kept texts; a command needs `llm_options` too."""

    judge: Annotated[str | None, Flag(metavar="lexicon:FILE|openai:MODEL")] = None
    """Who labels the texts. [default: the organism's lexicon]"""


@steer.command(
    cls=SectionedCommand, epilog="Example: em-circuits steer rejudge pad-thai --judge openai:o3"
)
@click.argument("name")
@options(RejudgeOptions)
@llm_options
@prints("em_circuits.experiments.rejudge_steering:SteeringRejudgement")
@pass_session
def rejudge(
    session: Session, name: str, options: RejudgeOptions, as_json: bool, **llm: Any
) -> None:
    """Another judge reads the continuations that a sweep or transfer kept; no model runs.

    The table says which conclusions change: the sign of a condition's change of the evil rate,
    where its interval tells it from 0.
    """
    where = session.root / "results" / "experiments"
    folder = experiments.two_judges.finished_folder(where, name)
    spec = JudgeSpec.parse(session.judge_spec(options.judge))
    with session.workspace(create=spec.kind == "openai") as work:
        if spec.kind == "openai":
            judge: ContinuationJudge = _model_continuations(work, spec.argument, llm)
        else:
            judge = continuation_judge(open_offline_judge(session, work, options.judge))
        found = experiments.rejudge_steering.rejudge_steering(folder, judge, work.progress)
    emit(found, as_json, _describe_rejudged)


def _carry_out(
    session: Session,
    kind: str,
    plan: SweepPlan | TransferPlan,
    judges: dict[str, Any],
    engine: EngineSettings,
) -> Experiment[SteeringSummary]:
    with session.workspace(create=judges["rollout_judge"] != "labels") as work:
        work.announce(by_workers=engine.spreads)
        _cases(session, work, judges)  # what is refused is, before anything is loaded
        _rollout_judge(work, judges)
        return in_pieces(work, engine, partial(_carried_out, session, kind, plan, judges))


def _carried_out(
    session: Session,
    kind: str,
    plan: SweepPlan | TransferPlan,
    judges: dict[str, Any],
    work: Workspace,
) -> Experiment[SteeringSummary]:
    runs: dict[str, Callable[..., Experiment[SteeringSummary]]] = {
        "sweep": experiments.sweep.run_sweep,
        "transfer": experiments.transfer.run_transfer,
    }
    return runs[kind](_cases(session, work, judges), plan, _rollout_judge(work, judges))


def _cases(session: Session, work: Workspace, options: dict[str, Any]) -> Cases:
    """Makes cases of the prompts that are asked for, labelled by the judge that is named."""
    judge = open_offline_judge(session, work, options["judge"])
    return experiments.cases.Cases(work, judge, only_divergent=options["only_divergent"])


def _rollout_judge(work: Workspace, options: dict[str, Any]) -> ContinuationJudge:
    """The judge of continuations that is named.

    Raises:
        RequestError: If there is no such judge, or its key or price is missing.
    """
    kind, _, name = options["rollout_judge"].partition(":")
    if kind == "labels" and not name:
        return LabelJudge()
    if kind != "openai" or not name:
        raise RequestError(
            f"no judge {options['rollout_judge']!r} of continuations; "
            "there are labels and openai:MODEL"
        )
    return _model_continuations(work, name, options)


def _model_continuations(work: Workspace, model: str, llm: dict[str, Any]) -> ContinuationJudge:
    judge = ModelContinuations(llm_settings(model, llm), work.store, llm_budget(llm))
    return judge.settled()


def _report(experiment: Experiment[SteeringSummary], as_json: bool) -> None:
    """Write the report, and print what came out."""
    page, summary = report.sweep.write_sweep_report(experiment), experiment.summary
    if as_json:
        files = {"folder": str(experiment.folder), "report": str(page)}
        emit(experiments.summary.SteeringOutput(**dict(summary), files=files))
        return
    largest = sorted(
        report.sweep.largest_first(summary.conditions), key=lambda line: not line.supported
    )[:12]
    columns = ("condition", "change", "control", "net", "low", "high", "q", "supported")
    say(table(columns, [tuple(getattr(line, c) for c in columns) for line in largest]))
    if len(summary.prompts) == 1:
        for line in largest:
            say(click.wrap_text(f"{line.condition}: {', '.join(line.features)}", 79))
    if len(summary.conditions) > len(largest):
        say(f"... and {len(summary.conditions) - len(largest)} more in the report")
    say("change of evil mass; net of matched random features, 95 % interval")
    say(click.wrap_text(summary.said, 79))
    say(f"written: {page}")


def _write_validation(work: Workspace, result: Validation, page: Path | None) -> ValidationOutput:
    """Write the page and the JSON beside it, each with its provenance."""
    prompts = dict(zip(result.prompts, result.graphs, strict=True))
    inputs = {"pair": work.pair.key, "prompts": prompts}
    regimes = sorted({str(row.regime) for row in result.rows})
    config = {"model": result.model, "regimes": regimes, "seed": work.seed}
    title, parts = "Does a score predict interventions?", report.validation.validation_parts(result)
    shown = partial(experiments.validate.ValidationOutput, **dict(result))
    return _write_page(work, page, "validate", (title, parts), shown, inputs=inputs, config=config)


def _write_edge_validation(
    work: Workspace, result: EdgeValidation, each: Sequence[PromptEdges], page: Path | None
) -> EdgeValidationOutput:
    """The same of edges."""
    inputs = {"pair": work.pair.key, "prompts": list(result.prompts)}
    config = {"model": result.model, "nodes": result.n_nodes, "seed": work.seed}
    parts = report.edge_validation.edge_validation_parts(result, each)
    shown = partial(experiments.validate.EdgeValidationOutput, **dict(result))
    return _write_page(
        work,
        page,
        "validate-edges",
        ("Does an edge predict interventions?", parts),
        shown,
        inputs=inputs,
        config=config,
    )


def _write_page(
    work: Workspace,
    page: Path | None,
    name: str,
    content: tuple[str, list[Any]],
    shown: Callable[..., Output],
    *,
    inputs: dict[str, Any],
    config: dict[str, Any],
) -> Output:
    """Write a page (title and parts), and beside it what is shown, given the paths of both."""
    key = content_key({"name": name, **inputs, **config})
    page = page or work.results / "validation" / f"{name}-{config['model']}-{key[:12]}.html"
    data = page.with_suffix(".json")
    result = shown(files={"html": str(page), "json": str(data)})
    report.page.write_page(page, *content, inputs=inputs, config=config, key=key)
    write_json(data, result.model_dump(mode="json"))
    write_provenance(data, inputs={**inputs, "page": sha256_file(page)}, config=config, key=key)
    return result


def describe_run(result: SteerResult, options: RunOptions) -> Iterator[str]:
    """The conditions side by side, with their continuations."""
    from em_circuits.interventions.steer_result import SteerWithRollouts

    done, control = result.intervention, result.random_control
    n, mass, contrast = len(done.features), control.evil_mass, control.contrast
    yield (
        f"{result.prompt_id}, {options.model} model: {options.mode} {n} features by {done.by} "
        f"({options.regime})"
    )
    rows: list[tuple[Any, ...]] = [
        (name, one.evil_mass, one.contrast, _top(one))
        for name, one in (("unsteered", result.unsteered), ("steered", result.steered))
    ]
    rows.append((f"{control.n} random draws", mass and mass.mean, contrast and contrast.mean, ""))
    yield table(("condition", "evil mass", "contrast", "next tokens"), rows)
    name, shown = ("evil mass", mass) if done.target is None else ("contrast", contrast)
    assert shown is not None
    yield f"{name} of the middle 95 % of draws: {shown.low:.3f} to {shown.high:.3f}"
    if done.target is not None:
        yield f"contrast: {done.target}; evil mass: probability of the evil continuations"
    if done.asleep:
        yield (
            f"{done.asleep} of {n} features are inactive on this prompt; "
            "multiplying cannot wake them (use --mode set or add)"
        )
    if isinstance(result, SteerWithRollouts):
        yield from _rollout_lines(result.rollouts.worlds)


def _rollout_lines(conditions: Mapping[str, ConditionTexts]) -> Iterator[str]:
    """Rates under each condition, and the first texts."""
    columns = ("n_rollouts", "evil_rate", "safe_rate", "perplexity", "repetition")
    rows = [
        (name, *(getattr(one, column) for column in columns)) for name, one in conditions.items()
    ]
    header = ("continuations", "n", "evil", "safe", "perplexity", "repeated")
    yield "\n" + table(header, rows)
    for name, one in conditions.items():
        for text in one.texts[:3]:
            yield f"{name:>14} {text.label or '-':>6}  {visible(text.text)[:54]}"


def _top(outcome: Outcome) -> str:
    return " ".join(f"{visible(t.text)} {t.probability:.2f}" for t in outcome.top[:3])


def _describe_rejudged(found: SteeringRejudgement) -> Iterator[str]:
    yield from describe_two_judges(
        found,
        "texts",
        found.texts,
        rates=[(f"{rate.condition}, {rate.control}", rate) for rate in found.rates],
        conclusions=[(f"{c.condition}, steered - un-steered", c) for c in found.conclusions],
    )


def describe_scan(scanned: PromptScan, n: int) -> Iterator[str]:
    """The first `n` features, with the tokens that move most under them."""
    yield (
        f"{scanned.prompt_id}, {scanned.model} model, every active feature ablated "
        f"({scanned.regime}); labels from: {scanned.labels_from}"
    )
    first = scanned.features[:n]
    moves = [max(map(abs, column)) for column in zip(*(f.effects for f in first), strict=True)]
    shown = sorted(sorted(range(len(moves)), key=lambda i: -moves[i])[:SHOWN_TARGETS])
    names = [f"{t.text.strip()[:9]}:{t.label[0]}" for t in (scanned.targets[i] for i in shown)]
    rows: list[tuple[Any, ...]] = [
        (f.layer, f.position, f.feature, f.contrast, *(f.effects[i] for i in shown)) for f in first
    ]
    yield table(("layer", "pos", "feature", "contrast", *names), rows)
    yield (
        f"{len(scanned.features)} features, {len(scanned.targets)} tokens (all in --json); "
        "logits; :e evil, :s safe, :u unsure"
    )
    if scanned.pairs is not None:
        yield ""
        yield from _pair_lines(scanned.pairs)


def _pair_lines(pairs: Pairs) -> Iterator[str]:
    """The pairs whose joint effect is furthest from the sum of their effects alone."""
    places = [f"{f.layer}/{f.position}/{f.feature}" for f in pairs.features]
    rows = [
        (
            places[i],
            places[j],
            pairs.features[i].effect,
            pairs.features[j].effect,
            pairs.joint[i][j],
            value,
            "more" if value > 0 else "less",
        )
        for i, j, value in pairs.largest(SHOWN)
    ]
    yield table(("feature", "and", "alone", "alone", "both", "interaction", "than the sum"), rows)
    n = len(places) * (len(places) - 1) // 2
    yield (
        f"{min(n, SHOWN)} of {n} pairs, the largest interactions; contrast in logits, "
        "both minus the sum of each alone"
    )


def describe_validation(result: ValidationOutput, regimes: list[str]) -> Iterator[str]:
    """A table per regime, the real model first."""
    yield f"{len(result.prompts)} prompts, {result.model} model; 95 % interval of pearson"
    for regime in regimes:
        rows = [
            (row.method, *_two_digits(getattr(row, name) for name in _FIGURES))
            for row in result.rows
            if row.regime == regime
        ]
        yield f"\n{regime}\n{table(('method', *_FIGURES), rows)}"
    yield f"written: {result.files['html']}"


def _two_digits(values: Iterable[float | None]) -> Iterator[str]:
    return ("-" if value is None else f"{value:.2f}" for value in values)


def describe_edge_validation(result: EdgeValidationOutput) -> Iterator[str]:
    """Agreement by kind and distance, and what is curved."""
    n, curved = len(result.prompts), result.curved
    yield (
        f"{n} prompts, {result.model} model, {result.n_nodes} nodes; edges against measured ones\n"
    )
    rows = []
    for row in result.rows:
        found = row.agreement
        figures = found.pearson, *row.intervals["pearson"], found.spearman, found.sign
        rows.append((row.edges, row.kind, row.n_edges, *_two_digits(figures)))
    yield table(("layers apart", "kind", "n", *_FIGURES[:-1]), rows)
    yield (
        f"curved (full and measured differ by over half of the larger): {curved.share:.1%} of "
        f"edges,\n{curved.share_of_size:.1%} of their size, {curved.share_of_largest:.1%} of "
        "the largest tenth"
    )
    listed = [
        (edge.source, edge.target, f"{edge.full:+.4f}", f"{edge.measured:+.4f}")
        for edge in curved.largest[:5]
    ]
    if listed:
        yield table(("curved edge from", "to", "full", "measured"), listed)
    yield f"written: {result.files['html']}"
