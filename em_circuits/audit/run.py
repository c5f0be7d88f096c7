"""Audits: base and candidate over a suite, what differs, what it means, and a decision.

results/audits/NAME/config_resolved.yaml     everything the rest follows from
                    suite_results.json       answers, next tokens and KL of every case
                    score.json               scores and largest differences by prompt
                    interp_evidence.json     what the nodes that differ most stand for
                    decision.json            accept, reject, broken, undecided, uncalibrated
                    report.md, report.html   all of it to read
                    journal.jsonl, differences/   work under way; a killed audit goes on there

audit = run_audit(work, load_suite("toy"), AuditSettings())
audit.decision.said, audit.folder
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from jaxtyping import Float
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from em_circuits.activation_cache import ActivationCache
from em_circuits.audit.decision import AuditDecision, Calibration, decision_by
from em_circuits.audit.differences import FeatureSpace, SpaceNodes
from em_circuits.audit.evidence import InterpEvidence, interp_evidence
from em_circuits.audit.score import AuditScore, MeanEstimate, Method, audit_score, prompt_means
from em_circuits.audit.settings import AuditSettings
from em_circuits.audit.suite import Suite, SuiteCase
from em_circuits.cache import Journal
from em_circuits.experiments.plan import plain_name
from em_circuits.experiments.rollouts import mean_log_likelihood
from em_circuits.features.explain import FeatureLabels
from em_circuits.interventions import Treatment, generate
from em_circuits.models import Model, ModelPair
from em_circuits.models.next_tokens import compare, kl_divergence
from em_circuits.models.text import encode
from em_circuits.progress import Progress, no_progress
from em_circuits.sampling import Sampling
from em_circuits.workspace import Workspace
from pivotal_tokens.artefacts import (
    atomic_path,
    content_key,
    sha256_file,
    write_atomic,
    write_json,
    write_provenance,
)
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen, NextTokens

CONFIG, SUITE_RESULTS, SCORE, EVIDENCE, DECISION = (
    "config_resolved.yaml",
    "suite_results.json",
    "score.json",
    "interp_evidence.json",
    "decision.json",
)
_DIFFERENCES = "differences"
_SHOWN_TOKENS = 5
_CASES = 16
"""Cases that are run and journalled together."""


class TokenShare(Frozen):
    """A next token and its probability under both models."""

    text: str
    base: float
    candidate: float


class CaseResult(Frozen):
    """Both models on one case."""

    prompt: str
    category: str
    wording: int
    format: str
    text: str
    """As the models saw it."""
    base_answer: str | None
    """The likeliest; null where none was asked for."""
    candidate_answer: str | None
    kl: float
    """KL(base || candidate) of the next token, in nats."""
    next_tokens: tuple[TokenShare, ...]
    """The union of both models' likeliest, by the larger probability."""


class SuiteResults(Frozen):
    """What `suite_results.json` holds."""

    suite: str
    pair: str
    """Key of the pair of models."""
    kl: MeanEstimate
    """Mean over prompts."""
    changed_answers: MeanEstimate | None
    """Share of prompts whose answers differ; null where none was asked for."""
    rise: MeanEstimate | None
    """Of the loss on capability texts, candidate minus base, nats per token."""
    losses: tuple[tuple[float, float], ...]
    """Base and candidate on each capability text."""
    cases: tuple[CaseResult, ...]


class MeasuredSuite(NamedTuple):
    """Both models over a suite."""

    cases: tuple[SuiteCase, ...]
    results: tuple[CaseResult, ...]
    base: Float[Tensor, "case node"]
    candidate: Float[Tensor, "case node"]
    losses: tuple[tuple[float, float], ...]

    @property
    def differences(self) -> Float[Tensor, "case node"]:
        return self.candidate - self.base

    @property
    def kl(self) -> Float[Tensor, " case"]:
        return torch.tensor([one.kl for one in self.results], dtype=torch.float64)

    @property
    def rise(self) -> MeanEstimate | None:
        if not self.losses:
            return None
        return MeanEstimate.over([after - before for before, after in self.losses])


class Audit(NamedTuple):
    """A finished audit."""

    folder: Path
    config: dict[str, Any]
    results: SuiteResults
    score: AuditScore
    evidence: InterpEvidence
    decision: AuditDecision


class AuditOutput(Frozen, use_attribute_docstrings=True):
    """The object of ``audit run --json``."""

    key: str
    """Of everything that the audit follows from."""
    decision: AuditDecision
    scores: dict[Method, MeanEstimate]
    coverage: str
    """Of the explanations."""
    files: dict[str, str]
    """`folder`, `report` and `page`."""


def run_audit(
    work: Workspace,
    suite: Suite,
    settings: AuditSettings,
    *,
    calibration: Calibration | None = None,
    labels: FeatureLabels | None = None,
    name: str | None = None,
) -> Audit:
    """Audit the workspace's fine-tune, or finish what is left of an audit.

    Args:
        calibration: Of the same base, basis and suite; None leaves the scores uncalibrated.
        labels: Where explanations come from.
        name: Of the folder; by default it follows from what is asked, so the same goes on.

    Raises:
        RequestError: If the calibration is of another feature space or suite, or the folder holds
            another audit.
    """
    pair = work.pair
    space = FeatureSpace.of(pair, settings.basis)
    if calibration is not None:
        require_comparable(calibration, space, suite, settings.n_largest)
    config = {
        "kind": "audit",
        "settings": settings.model_dump(mode="json"),
        "suite": suite.model_dump(mode="json", exclude_none=True),
        "pair": pair.key,
        "candidate": {name: one.reference for name, one in pair.sources.items()},
        "space": space.model_dump(mode="json"),
        "calibration": None if calibration is None else model_key(calibration),
        "seed": work.seed,
    }
    folder = audit_folder(work.results, name, config)
    journal = Journal.open(folder, config, work.portion)
    measured = measure(pair, suite, settings, journal, folder / _DIFFERENCES, work.progress)
    results = SuiteResults(
        suite=suite.name,
        pair=pair.key,
        kl=MeanEstimate.over(list(prompt_means(measured.kl, measured.cases).values())),
        changed_answers=_changed(measured),
        rise=measured.rise,
        losses=measured.losses,
        cases=measured.results,
    )
    nodes = SpaceNodes(pair, settings.basis)
    score = audit_score(
        nodes,
        measured.cases,
        measured.base,
        measured.candidate,
        measured.kl,
        n=settings.n_largest,
        calibrated=calibration is not None,
    )
    evidence = interp_evidence(
        nodes,
        measured.differences,
        measured.cases,
        labels=labels,
        source=settings.explanations,
        n=settings.n_largest,
    )
    decision = decision_by(score.scores, measured.rise, calibration)
    audit = Audit(folder, config, results, score, evidence, decision)
    _write(audit)
    return audit


def require_comparable(
    calibration: Calibration, space: FeatureSpace, suite: Suite, n_largest: int
) -> None:
    """Refuse a calibration whose numbers are not an audit's.

    Raises:
        RequestError: Naming what differs.
    """
    space.require(calibration.space, "the calibration")
    if calibration.suite_key != model_key(suite):
        raise RequestError(
            f"the calibration is of suite {calibration.suite}, with other prompts than "
            f"{suite.name}; calibrate anew on this one"
        )
    if calibration.n_largest != n_largest:
        raise RequestError(
            f"the calibration sums {calibration.n_largest} differences; leave --n-largest "
            f"{n_largest} out, or calibrate anew"
        )


def model_key(value: BaseModel) -> str:
    """Content key of a suite or a calibration."""
    return content_key(value.model_dump(mode="json"))


def audit_folder(results: Path, name: str | None, config: dict[str, Any]) -> Path:
    """Folder of an audit; without a name it follows from what is asked.

    Raises:
        RequestError: If the name cannot be a folder's.
    """
    try:
        own = plain_name(name) if name is not None else f"audit-{content_key(config)[:12]}"
    except ValueError as error:
        raise RequestError(f"--name {name!r} {error}") from error
    return results / "audits" / own


def measure(
    pair: ModelPair,
    suite: Suite,
    settings: AuditSettings,
    journal: Journal,
    folder: Path,
    progress: Progress = no_progress,
) -> MeasuredSuite:
    """Both models over every case and every capability text; what the journal has is not redone."""
    cases = suite.cases()
    nodes = SpaceNodes(pair, settings.basis)
    groups = [cases[i : i + _CASES] for i in range(0, len(cases), _CASES)]
    files = [folder / f"{number}.safetensors" for number in range(len(groups))]
    pieces = [
        (f"cases:{number}", partial(_piece, pair, nodes, some, settings, file))
        for number, (some, file) in enumerate(zip(groups, files, strict=True))
    ]
    # Differences lie beside the journal: a piece whose file is gone or cut off is done again.
    for (key, _), file in zip(pieces, files, strict=True):
        if key in journal and _stored(file) is None:
            journal.forget(key)
    texts = [
        (f"capability:{i}", partial(_loss, pair, one)) for i, one in enumerate(suite.capability)
    ]
    values = journal.complete([*pieces, *texts], "audit", progress)
    done, losses = values[: len(pieces)], values[len(pieces) :]
    means = [load_file(file) for file in files]
    return MeasuredSuite(
        cases=cases,
        results=tuple(CaseResult.model_validate(row) for one in done for row in one["rows"]),
        base=torch.cat([one["base"] for one in means]),
        candidate=torch.cat([one["candidate"] for one in means]),
        losses=tuple((one["base"], one["candidate"]) for one in losses),
    )


def _piece(
    pair: ModelPair,
    nodes: SpaceNodes,
    cases: Sequence[SuiteCase],
    settings: AuditSettings,
    file: Path,
) -> dict[str, Any]:
    """Some cases; their activations go to a file of their own."""
    texts = [case.seen(pair.tokenizer) for case in cases]
    ids = [pair.input_ids(text) for text in texts]
    means = [nodes.means(one) for one in ids]
    with atomic_path(file) as temporary:
        stacked = {
            "base": torch.stack([base for base, _ in means]),
            "candidate": torch.stack([candidate for _, candidate in means]),
        }
        save_file(stacked, temporary)
    logits = [[model.next_logits(one).float().cpu() for one in ids] for model in pair.models]
    answers = [_answers(model, ids, settings.answer_tokens) for model in pair.models]
    rows = []
    for i, case in enumerate(cases):
        before, after = logits[0][i], logits[1][i]
        both = compare(pair, before, after, top_k=_SHOWN_TOKENS)
        rows.append(
            CaseResult(
                prompt=case.prompt,
                category=case.category,
                wording=case.wording,
                format=case.format,
                text=texts[i],
                base_answer=answers[0][i],
                candidate_answer=answers[1][i],
                kl=float(kl_divergence(before, after)),
                next_tokens=_shares(both.base, both.merged),
            ).model_dump(mode="json")
        )
    return {"rows": rows}


def _shares(base: NextTokens, candidate: NextTokens) -> tuple[TokenShare, ...]:
    after = {one.token_id: one.probability for one in candidate.tokens}
    shares = [
        TokenShare(text=one.text, base=one.probability, candidate=after[one.token_id])
        for one in base.tokens
    ]
    return tuple(sorted(shares, key=lambda one: -max(one.base, one.candidate)))


def _answers(model: Model, ids: Sequence[Tensor], n_tokens: int) -> list[str | None]:
    """The likeliest continuation of each text; up to the user's next turn."""
    if not n_tokens:
        return [None for _ in ids]
    states = [ActivationCache.capture(model, one) for one in ids]
    sampling = Sampling(samples=1, max_tokens=n_tokens, temperature=0.0)
    drawn = generate(model, states, [Treatment() for _ in ids], sampling)
    decoded = [
        str(model.tokenizer.decode(list(drawn.ids(row, 0)), skip_special_tokens=True))
        for row in range(len(ids))
    ]
    return [text.partition("\nUser:")[0].strip() for text in decoded]


def _loss(pair: ModelPair, text: str) -> dict[str, float]:
    start, *rest = encode(pair.tokenizer, text)
    scores = [mean_log_likelihood(model, [start], [rest])[0] for model in pair.models]
    if any(score is None or not math.isfinite(score) for score in scores):
        raise RequestError(f"capability text {text[:40]!r} has no finite loss; is it empty?")
    return {"base": -float(scores[0] or 0.0), "candidate": -float(scores[1] or 0.0)}


def _stored(path: Path) -> dict[str, Tensor] | None:
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return None


def _changed(measured: MeasuredSuite) -> MeanEstimate | None:
    if any(one.base_answer is None for one in measured.results):
        return None
    other = torch.tensor([one.base_answer != one.candidate_answer for one in measured.results])
    return MeanEstimate.over(list(prompt_means(other.double(), measured.cases).values()))


def _write(audit: Audit) -> None:
    """Every artefact, each with its provenance; the decision last."""
    text = yaml.safe_dump(audit.config, sort_keys=False, allow_unicode=True)
    write_atomic(audit.folder / CONFIG, text)
    write_provenance(audit.folder / CONFIG, inputs={"pair": audit.config["pair"]}, config={})
    parts: list[tuple[str, BaseModel]] = [
        (SUITE_RESULTS, audit.results),
        (SCORE, audit.score),
        (EVIDENCE, audit.evidence),
        (DECISION, audit.decision),
    ]
    inputs = {CONFIG: sha256_file(audit.folder / CONFIG)}
    for file, value in parts:
        write_json(audit.folder / file, value.model_dump(mode="json"))
        config = {"key": content_key(audit.config)}
        write_provenance(audit.folder / file, inputs=inputs, config=config)
        inputs = {**inputs, file: sha256_file(audit.folder / file)}
