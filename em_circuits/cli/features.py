"""``em-circuits features``: rankings of features, over one prompt or many, and what they mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
from pydantic import Field, model_validator

from em_circuits import experiments
from em_circuits.cli.mediate import mediate
from em_circuits.cli.options import Flag, Options, Renamed, options
from em_circuits.cli.output import emit, one_line, prints, say, table
from em_circuits.cli.session import Session, pass_session
from em_circuits.feature import FeatureChoice
from em_circuits.organisms.corpus import CorpusConfig, documents
from em_circuits.scoring import FORMER, N_MEASURED, TO_RANK, Scoring
from em_circuits.target_request import TargetRequest
from pivotal_tokens.errors import RequestError
from pivotal_tokens.review.display import visible
from pivotal_tokens.schema import ModelName

if TYPE_CHECKING:
    from em_circuits.experiments.aggregate import AggregateOutput
    from em_circuits.experiments.analyse import PromptRanking
    from em_circuits.experiments.difference import DifferenceOutput
    from em_circuits.features.explain import Explained, Explanations
    from em_circuits.features.over_prompts import LayerComparison

ORGANISM_DOCUMENTS = 400
"""Documents drawn for the embedded organism where no text is given."""

_METHOD = (
    "direct, total_effect and signed_influence see a graph's nodes, the others every active "
    "feature; all but these three and gradient run the model."
)
_AVERAGED = [by for by in Scoring if by is not Scoring.GREEDY]


class RankOptions(Options, TargetRequest):
    """Which features of one prompt, scored how, by their effect on what."""

    model: ModelName = "merged"
    """Which model."""
    method: Annotated[Scoring, Flag(type=Renamed(Scoring, FORMER), help=_METHOD)] = TO_RANK
    measure: int = Field(default=N_MEASURED, ge=0)
    """Features that gradient+ablation really ablates."""
    top: int | None = Field(default=None, ge=1)
    """Only the N most positive."""

    @model_validator(mode="after")
    def _runs_the_model(self) -> RankOptions:
        if self.is_given:
            require_live(self.method)
        return self


class OverPromptsOptions(Options):
    """How features are summed up over prompts."""

    method: Annotated[Scoring, Flag(type=Renamed(_AVERAGED, FORMER), help=_METHOD)] = (
        Scoring.GRADIENT
    )
    by_position: bool = False
    """Keep positions apart, counted from the prompt's end."""
    exclude_layers: Annotated[str, Flag(metavar="L,L,...", show_default=False)] = ""
    """Leave these layers out, and compare them with the rest."""
    min_prompts: int = Field(default=5, ge=1)
    """Test features that are scored in at least so many prompts."""
    only_divergent: bool = False
    """Leave out prompts whose verdict is neither injection nor promotion."""
    top: int | None = Field(default=None, ge=1)
    """Only the first N features."""

    def request(self, session: Session) -> dict[str, Any]:
        """The fields that the requests of `aggregate` and `diff` share.

        Raises:
            RequestError: If the layers are no numbers.
        """
        parts = [part.strip() for part in self.exclude_layers.split(",") if part.strip()]
        if not all(part.isdecimal() for part in parts):
            raise RequestError(
                f"--exclude-layers {self.exclude_layers!r}: give layer numbers, such as 14,15"
            )
        return {
            "method": self.method,
            "by_position": self.by_position,
            "exclude_layers": tuple(sorted({int(part) for part in parts})),
            "settings": {"min_prompts": self.min_prompts, "seed": session.seed},
        }


class AggregateOptions(OverPromptsOptions, TargetRequest):
    """Of which models, and by their effect on what."""

    model: ModelName = "merged"
    """Which model."""
    pair: Annotated[str | None, Flag(metavar="KEY")] = None
    """Another model pair in the store, not loaded."""

    @model_validator(mode="after")
    def _runs_the_model(self) -> AggregateOptions:
        if self.is_given:
            require_live(self.method)
        return self


class DiffOptions(OverPromptsOptions):
    """Of which pairs."""

    pairs: Annotated[tuple[str, ...], Flag("--pair", "pairs", metavar="KEY")] = ()
    """A model pair in the store."""
    roots: Annotated[
        tuple[str, ...], Flag("--also", "roots", type=click.Path(file_okay=False))
    ] = ()
    """Also every model pair of the store under this root."""


class ExplainOptions(Options):
    """Where contexts and labels of features come from."""

    prompt: Annotated[str | None, Flag(metavar="PROMPT")] = None
    """The labelled prompt that top:N is of."""
    text: Path | None = None
    """Look for contexts in this file, a document a line. [default: the organism's documents]"""
    model: ModelName = "merged"
    """Which model."""
    keep: int = Field(default=3, ge=1)
    """Contexts."""
    neuronpedia: Annotated[str | None, Flag(metavar="MODEL/SOURCE")] = None
    """Where labels are, with {layer}: gemma-2-2b/{layer}-gemmascope-transcoder-16k."""
    cache_only: bool = False
    """Labels from the cache alone; no network."""


@click.group()
def features() -> None:
    """Rank features, and measure which of them carry the shift from base to merged."""


features.add_command(mediate)


@features.command(epilog="Example: em-circuits features rank 44a71b --top 10")
@click.argument("prompt")
@options(RankOptions)
@prints("em_circuits.experiments.analyse:PromptRanking")
@pass_session
def rank(session: Session, prompt: str, options: RankOptions, as_json: bool) -> None:
    """Features of one prompt by evil-minus-safe contrast; positive pushes towards evil.

    With --continuation, --answer, --span or --rollouts-judged by their effect on whole answers,
    teacher-forced; with --along by that on a direction of the residual stream.
    """
    with session.on_prompts(prompt) as work:
        whole = experiments.kept.rank_kept(
            work,
            prompt,
            model=options.model,
            by=options.method,
            n_measured=options.measure,
            target=options,
        )
    n = len(whole["features"])
    top = options.top if as_json else options.top or 15
    kind = experiments.analyse.PromptRanking
    result = kind.model_validate(whole | {"features": whole["features"][:top]})
    emit(result, as_json, partial(describe_ranking, n=n))


@features.command(epilog="Example: em-circuits features aggregate --exclude-layers 14,15 --top 20")
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@options(AggregateOptions)
@prints("em_circuits.experiments.aggregate:AggregateOutput")
@pass_session
def aggregate(
    session: Session, prompts: tuple[str, ...], options: AggregateOptions, as_json: bool
) -> None:
    """Features over all labelled prompts, or over those that are named, by mean contrast.

    Under a target (--continuation, --span, ...), which is built for each prompt, labels are not
    needed, and there are none to permute.
    """
    options.require_one(prompts)
    asked = options.request(session)
    with session.on_prompts(*prompts) as work:
        request = experiments.aggregate.AggregateRequest(model=options.model, **asked)
        pair = work.store.results.find_pair(options.pair) if options.pair else None
        found = experiments.aggregate.aggregate_prompts(
            work,
            prompts,
            request,
            pair=pair,
            only_divergent=options.only_divergent,
            target=options,
        )
    features = found.rows()[: options.top if as_json else options.top or 15]
    result = {**found.head(), "features": features}
    kind = experiments.aggregate.AggregateOutput
    emit(kind.model_validate(result), as_json, describe_aggregate)
    if not as_json and features:
        ids = dict.fromkeys(f"{row['layer']}/{row['feature']}" for row in features)
        say(session.card_hint(",".join(ids)))


@features.command(epilog="Example: em-circuits features diff --method total_effect --json")
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@options(DiffOptions)
@prints("em_circuits.experiments.difference:DifferenceOutput")
@pass_session
def diff(session: Session, prompts: tuple[str, ...], options: DiffOptions, as_json: bool) -> None:
    """What merged changes of base's features: activation, score, direct edge to the contrast."""
    asked = options.request(session)
    with ExitStack() as stack:
        work = stack.enter_context(session.on_prompts(*prompts))
        others = [stack.enter_context(session.workspace(root=root)) for root in options.roots]
        request = experiments.aggregate.OverPrompts(**asked)
        sources = experiments.difference.find_sources(work, options.pairs, others)
        found = experiments.difference.difference_over_prompts(
            sources, prompts, request, only_divergent=options.only_divergent
        )
    lines = experiments.difference.joined(found)
    features = lines[: options.top if as_json else options.top or 15]
    kind = experiments.difference.DifferenceOutput
    emit(kind.model_validate({**found.head(), "features": features}), as_json, describe_difference)


@features.command(
    epilog="Example: em-circuits features explain top:5 --prompt 44a71b --text notes.txt"
)
@click.argument("features")
@options(ExplainOptions)
@prints("em_circuits.features.explain:Explanations")
@pass_session
def explain(session: Session, features: str, options: ExplainOptions, as_json: bool) -> None:
    """Top contexts, promoted tokens and a label of FEATURES.

    FEATURES is LAYER/ID,... (or LAYER/POSITION/ID,...), or top:N with --prompt. A feature without a
    label of its own gets that of its nearest labelled neighbour, marked as a proxy.
    """
    if FeatureChoice.parse(features).needs_ranking and options.prompt is None:
        raise RequestError(f"{features!r} needs --prompt PROMPT")
    if options.cache_only and options.neuronpedia is None:
        raise RequestError("--cache-only needs --neuronpedia MODEL/SOURCE: whose labels?")
    texts = _documents(session, options.text)
    with session.workspace() as work:
        if options.prompt is not None:
            work.store.prompts.get(options.prompt)

        from em_circuits.features.explain import Explanations, coverage
        from em_circuits.features.explain import explain as gather
        from em_circuits.features.neuronpedia import LabelSource, NeuronpediaLabels

        labels = None
        if options.neuronpedia is not None:
            cache, source = session.root / "results" / "neuronpedia", options.neuronpedia
            labels = NeuronpediaLabels(
                LabelSource.parse(source), cache, online=not options.cache_only
            )
        chosen, by = experiments.analyse.choose_ids(
            work, features, options.prompt, model=options.model
        )
        found = gather(work.pair.model(options.model), chosen, texts, labels, keep=options.keep)
    labelled = coverage([item.label for item in found])
    result = Explanations(model=options.model, by=by, features=tuple(found), coverage=labelled)
    emit(result, as_json, describe_explanations)


def describe_ranking(result: PromptRanking, n: int) -> Iterator[str]:
    """The table of a ranking of `n` features."""
    method = result.method
    what = f"labels from: {result.labels_from}" if result.target is None else result.target
    whose = f"by {method}; {what}"
    yield f"{result.prompt_id}, {result.model} model, {whose}"
    other = "gradient" if method in ("gradient", "gradient+ablation") else "graph"
    names = ("layer", "position", "feature", "contrast", "evil_mean", "safe_mean", "hedges_g")
    rows = [
        (
            *(getattr(f, name) for name in (*names, "activation")),
            "measured" if f.measured else other,
        )
        for f in result.features
    ]
    header = ("layer", "pos", "feature", "contrast", "evil", "safe", "g", "activation", "by")
    yield table(header, rows)
    yield f"{n} features in all; contrast in {result.unit}, g is Hedges' g"


def require_live(method: Scoring) -> None:
    """Refuse a method that cannot rank by a target.

    Raises:
        RequestError: If it reads a graph.
    """
    if method.from_graph:
        raise RequestError(
            f"--method {method} reads a graph of next tokens; a target of its own is ranked by "
            "gradient, gradient+ablation, measured, joint or greedy"
        )


def _documents(session: Session, path: Path | None) -> Iterable[str]:
    if path is None:
        if not session.templated:
            raise RequestError("give --text FILE, a document a line: contexts are looked for there")
        return list(documents(ORGANISM_DOCUMENTS, "explain", CorpusConfig()))
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--text {path} cannot be read: {error}") from error


def describe_explanations(result: Explanations) -> Iterator[str]:
    """What is known of each feature, and how many have labels."""
    for item in result.features:
        yield "\n".join(_block(item))
    yield f"labels: {result.coverage}"


def _block(item: Explained) -> Iterator[str]:
    """What is known of one feature."""
    yield f"{item.layer}/{item.feature}  fires at {item.density:.2%} of positions"
    if item.label is not None:
        note = ""
        if item.label.kind == "proxy":
            low = ", LOW SIMILARITY" if item.label.low_similarity else ""
            note = f" (proxy: feature {item.label.feature}, cosine {item.label.cosine:.2f}{low})"
        yield f"  label: {one_line(item.label.text)}{note}"
    for name, tokens in (("up", item.promoted), ("down", item.suppressed)):
        shown = " ".join(visible(token.text) for token in islice(tokens, 8))
        yield f"  {name + ':':6} {shown if len(shown) <= 70 else shown[:69] + '…'}"
    if not item.contexts:
        yield "  never fires in this text"
    yield from (f"  {c.activation:8.3f}  {one_line(c.marked, 66)}" for c in item.contexts)


def describe_aggregate(result: AggregateOutput) -> Iterator[str]:
    """Features over prompts; how many were tested, how stable the top is, excluded layers."""
    n, out = len(result.prompts), len(result.left_out)
    left_out = f" ({out} left out; --json says why)" if out else ""
    of = "" if result.target is None else f", on {result.target}"
    yield f"{result.model} model, by {result.method}{of}, over {n} prompts{left_out}"
    place = ("layer", "feature", *(("offset",) if result.by_position else ()))
    names = (*place, "selected", "n", "mean", "low", "high", "same_sign", "q", "stable")
    header = (*place, "seen", "n", "mean", "low", "high", "sign", "q", "stable")
    yield table(header, [[getattr(line, name) for name in names] for line in result.features])
    stability, permuted = result.stability, result.permutations
    tested = f", {result.n_tested} tested by {permuted.n} {'(all) ' if permuted.exact else ''}"
    yield f"{result.n_features} features" + (
        f"{tested}permutations of the labels" if result.target is None else ""
    )
    if stability.mean_overlap is not None:
        yield (
            f"top {stability.k} without one prompt: {stability.mean_overlap:.0%} stay, "
            f"{stability.least_overlap:.0%} at least"
        )
    if result.layers:
        yield _layer_note(result.layers)
    yield f"{'kept' if result.reused else 'written'}: {result.files['parquet']}"


def describe_difference(result: DifferenceOutput) -> Iterator[str]:
    """Changes of features, a table per pair."""
    place = ("layer", "feature", *(("offset",) if result.by_position else ()))
    header = (*place, "n", "score", "low", "high", "q", "activation", "edge")
    for number, pair in enumerate(result.pairs):
        yield (
            f"pair {pair.pair[:12]}: merged minus base, {len(pair.prompts)} prompts, "
            f"by {result.method}"
        )
        rows = []
        for line in result.features:
            cell = line.changes[number]
            score, *others = (getattr(cell, m, None) for m in ("score", "activation", "edge"))
            figures = [getattr(score, name, None) for name in ("n", "mean", "low", "high", "q")]
            means = [getattr(other, "mean", None) for other in others]
            rows.append([*(getattr(line, p) for p in place), *figures, *means])
        yield table(header, rows)
        if pair.layers:
            yield _layer_note(pair.layers)
    yield f"{'kept' if result.reused else 'written'}: {result.files['parquet']}"


def _layer_note(layers: LayerComparison) -> str:
    """How excluded layers compare with the others."""
    excluded = list(layers.excluded)
    if layers.difference is None:
        return f"layers {excluded}: no prompt has features on both sides"
    interval = "" if layers.low is None else f" [{layers.low:.4f}, {layers.high:.4f}]"
    return (
        f"mean |contrast| without layers {excluded}: {layers.kept_mean:.4f}, in them "
        f"{layers.excluded_mean:.4f}\ndifference {layers.difference:.4f}{interval}"
    )
