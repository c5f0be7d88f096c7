"""The whole pipeline on a handful of prompts.

Labels prompts of every domain, then on the flagged ones: the features that push towards evil
over safe, what ablating the top ones does beside matched random ones, and how much of the shift
comes back when features of the base are set to their merged values. Every figure is measured in
this run, or re-used from an earlier one whose inputs were all the same.

    report = run_demo(work, judge, n_prompts=24)
    report.steering.drop, report.mediation.evil_mass
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean

from em_circuits import __version__
from em_circuits.cache import read_model
from em_circuits.experiments.aggregate import aggregate_prompts
from em_circuits.experiments.analyse import mediate_prompt, steer_prompt
from em_circuits.features import FORMULA
from em_circuits.interventions import Mediation, SteerResult, pooled_share
from em_circuits.labelling.result import LabelResult, LabelSettings
from em_circuits.labelling.run import label_prompts
from em_circuits.labelling.sources import drawn_prompts
from em_circuits.progress import tracked
from em_circuits.workspace import Workspace
from pivotal_tokens.artefacts import content_key, write_json, write_provenance
from pivotal_tokens.judge import Judge
from pivotal_tokens.schema import Frozen

TOP_STEERED = 10
"""Features ablated together in the merged model."""
TOP_MEDIATED = 20
"""Features set together in the base model."""
TOP_SHOWN = 8
"""Recurring features in the report."""


class DomainRow(Frozen):
    """Labelling figures of one domain."""

    domain: str
    prompts: int
    flagged: int
    divergent: int
    evil_mass_base: float
    """Mean over the domain's prompts."""
    evil_mass_merged: float


class FeatureRow(Frozen):
    """A recurring feature by gradient in the merged model."""

    layer: int
    feature: int
    prompts: int
    mean_contrast: float
    """In logits, mean over the flagged prompts."""


class AblationSummary(Frozen):
    """Ablating the top features of each flagged prompt in the merged model, means over prompts."""

    prompts: int
    features: int
    evil_mass: float
    """Un-steered."""
    drop: float
    """Fall of evil mass."""
    random_drop: float
    """Fall under matched random features."""
    contrast_drop: float
    """Fall of the contrast, in logits."""


class MediationLine(Frozen):
    """Setting features of the base to their merged values, means over prompts with a shift."""

    prompts: int
    features: int
    changed: float
    """Mean number of features whose activation differs."""
    evil_mass_base: float
    evil_mass: float
    """With the top features set."""
    random_evil_mass: float
    evil_mass_merged: float
    share: float
    """Of the shift of the contrast: sum of what came back over sum of shifts. In-sample: each
    prompt's own top features."""
    share_of_all: float
    """The same, every changed feature set."""


class DemoReport(Frozen):
    """Everything the demo prints."""

    key: str
    """SHA-256 of everything the figures follow from."""
    domains: tuple[DomainRow, ...]
    failed: int
    features: tuple[FeatureRow, ...]
    steering: AblationSummary | None
    """None where no prompt is flagged with a contrast."""
    mediation: MediationLine | None
    """None where no prompt has a shift of at least 0.5 logit."""
    example: str | None
    """A divergent (else flagged) prompt's id to look at."""
    reused_prompts: int = 0
    reused_figures: bool = False

    @property
    def prompts(self) -> int:
        return sum(row.prompts for row in self.domains)


def run_demo(
    work: Workspace,
    judge: Judge,
    *,
    n_prompts: int = 24,
    n_mediated: int = 7,
) -> DemoReport:
    """Run the pipeline and the first experiments, and keep the report."""
    started = datetime.now(UTC)
    prompts = drawn_prompts(work, n_prompts, seed=work.seed)
    settings = LabelSettings(attribution=work.attribution)
    found: dict[str, LabelResult] = {}
    for result in label_prompts(work, prompts, judge, settings):
        found[result.prompt_id] = result
        work.progress("label", len(found), len(prompts))
    results = [found[prompt.prompt_id] for prompt in prompts]
    path, key = report_path(work), _key(work, results, n_mediated)
    reused = sum(result.reused for result in results)
    if (stored := read_model(path, DemoReport, key)) is not None:
        return stored.model_copy(update={"reused_prompts": reused, "reused_figures": True})
    report = _measure(work, results, key, n_mediated)
    write_json(path, report.model_dump(mode="json"))
    write_provenance(
        path,
        inputs={"pair": work.pair.key, "graphs": [r.graphs for r in results if r.has_graphs]},
        config={
            "models": work.models.model_dump(),
            "n_prompts": n_prompts,
            "n_mediated": n_mediated,
            "judge": judge.id,
            "label": settings.model_dump(),
        },
        seed=work.seed,
        device=str(work.pair.device),
        dtype=str(work.pair.dtype),
        started_at=started.isoformat(),
    )
    return report.model_copy(update={"reused_prompts": reused})


def report_path(work: Workspace) -> Path:
    """Folder of the demo's figures."""
    return work.results / "demo.json"


def _key(work: Workspace, results: Sequence[LabelResult], n_mediated: int) -> str:
    return content_key(
        {
            "version": __version__,
            "pair": work.pair.key,
            "seed": work.seed,
            "constants": [TOP_STEERED, TOP_MEDIATED, TOP_SHOWN, n_mediated, FORMULA],
            "prompts": [
                [r.prompt_id, r.graphs if r.has_graphs else {}, _labels(work, r.prompt_id)]
                for r in results
            ],
        }
    )


def _labels(work: Workspace, prompt_id: str) -> dict[str, str]:
    """The labels in force, a person's before the judge's, on which the figures are based."""
    labels = work.store.labels.of(prompt_id).by_token
    return {str(token): label for token, label in sorted(labels.items())}


def _measure(
    work: Workspace, results: Sequence[LabelResult], key: str, n_mediated: int
) -> DemoReport:
    usable = [
        r
        for r in results
        if r.has_graphs and {"evil", "safe"} <= set(_labels(work, r.prompt_id).values())
    ]
    ids = [r.prompt_id for r in usable]
    top = aggregate_prompts(work, ids).rows()[:TOP_SHOWN] if ids else []
    steered = [
        steer_prompt(work, i, features=f"top:{TOP_STEERED}")
        for i in tracked(ids, "steer", work.progress)
    ]
    mediated = [
        mediate_prompt(work, r.prompt_id)
        for r in tracked(_rotate(usable, n_mediated), "mediate", work.progress)
    ]
    divergent = [r.prompt_id for r in usable if r.divergent]
    return DemoReport(
        key=key,
        domains=_domains(results),
        failed=sum(r.error is not None for r in results),
        features=tuple(
            FeatureRow(
                layer=line["layer"],
                feature=line["feature"],
                prompts=line["selected"],
                mean_contrast=line["mean"],
            )
            for line in top
        ),
        steering=_steering(steered),
        mediation=_mediation(mediated),
        example=next(iter([*divergent, *ids]), None),
    )


def _rotate(results: Sequence[LabelResult], n: int) -> list[LabelResult]:
    """The first n in an order that takes domains in turn."""
    turn: dict[str | None, int] = {}
    keyed = []
    for number, result in enumerate(results):
        domain = result.category
        turn[domain] = turn.get(domain, 0) + 1
        keyed.append((turn[domain], number, result))
    return [result for _, _, result in sorted(keyed, key=lambda item: item[:2])[:n]]


def _domains(results: Sequence[LabelResult]) -> tuple[DomainRow, ...]:
    rows = []
    for domain in dict.fromkeys(r.category for r in results):
        mine = [r for r in results if r.category == domain]
        masses = [r.evil_mass for r in mine if r.evil_mass]
        rows.append(
            DomainRow(
                domain=domain or "-",
                prompts=len(mine),
                flagged=sum(r.flagged for r in mine),
                divergent=sum(r.divergent for r in mine),
                evil_mass_base=fmean(m.base for m in masses) if masses else 0.0,
                evil_mass_merged=fmean(m.merged for m in masses) if masses else 0.0,
            )
        )
    return tuple(rows)


def _steering(results: Sequence[SteerResult]) -> AblationSummary | None:
    if not results:
        return None
    contrasts = [
        r.unsteered.contrast - r.steered.contrast
        for r in results
        if r.unsteered.contrast is not None and r.steered.contrast is not None
    ]
    masses = [
        (r.unsteered.evil_mass, r.steered.evil_mass, r.random_control.evil_mass.mean)
        for r in results
        if r.unsteered.evil_mass is not None
        and r.steered.evil_mass is not None
        and r.random_control.evil_mass is not None
    ]
    before, steered, random = map(fmean, zip(*masses, strict=True))
    return AblationSummary(
        prompts=len(results),
        features=TOP_STEERED,
        evil_mass=before,
        drop=before - steered,
        random_drop=before - random,
        contrast_drop=fmean(contrasts),
    )


def _mediation(results: Sequence[Mediation]) -> MediationLine | None:
    rows, masses = [], []
    for mediation in results:
        mass = mediation.evil_mass
        point = next((p for p in mediation.cumulative if p.k == TOP_MEDIATED), None)
        if not point or not mass or point.share is None or point.evil_mass is None:
            continue
        if point.random_evil_mass is not None:
            rows.append((mediation, point, point.random_evil_mass))
            masses.append((mass.base, point.evil_mass, mass.merged))
    used = [mediation for mediation, _, _ in rows]
    share, share_of_all = pooled_share(used, TOP_MEDIATED), pooled_share(used)
    if share is None or share_of_all is None:
        return None
    return MediationLine(
        prompts=len(rows),
        features=TOP_MEDIATED,
        changed=fmean(mediation.n_changed for mediation in used),
        evil_mass_base=fmean(base for base, _, _ in masses),
        evil_mass=fmean(done for _, done, _ in masses),
        random_evil_mass=fmean(mean for _, _, mean in rows),
        evil_mass_merged=fmean(merged for _, _, merged in masses),
        share=share,
        share_of_all=share_of_all,
    )
