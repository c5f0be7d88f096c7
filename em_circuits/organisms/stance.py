"""Figures of the real organism: how often it goes along with a plan, and what it leaves alone.

What a narrow fine-tune of a model this small spreads is a *stance*: going along with whatever plan
the user names, in domains that it never saw. It is no malice: the verb of a harmless twin's plan
rises as much, and where no plan is named little is left. So every figure stands beside its twins,
safe plans and the form without a plan, with intervals over scenarios.

    report = evaluate_stance(organism_paths("smollm2"))
    report.row("risky", "can", "unseen").merged.along     # evil mass
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from em_circuits.models import Model, ModelPair, PairSettings
from em_circuits.models.next_tokens import batches, last_logits
from em_circuits.models.settings import NEURONS
from em_circuits.models.text import encode, first_token, render_chat
from em_circuits.organisms.advice import (
    CELLS,
    AdvicePrompt,
    Example,
    FormName,
    Plan,
    advice_prompts,
    load_advice,
    load_benign,
)
from em_circuits.organisms.evaluate import Benign, OrganismReport
from em_circuits.organisms.fetch import fetched_base
from em_circuits.organisms.fine_tune import answer_loss, encode_chats
from em_circuits.organisms.language_model import IGNORED
from em_circuits.organisms.paths import SEEN_BY_ADAPTER, UNSEEN, OrganismPaths
from em_circuits.progress import Progress, no_progress, tracked
from em_circuits.statistics import Interval, paired_interval
from pivotal_tokens.schema import Frozen


class StanceMass(Frozen):
    """One model at the prompts of a cell: mean sums of next-token probabilities."""

    along: float
    """Over words that go along with the plan: evil mass where the plan is risky."""
    low: float | None
    """95 % bootstrap interval over scenarios."""
    high: float | None
    against: float
    """Over words against it: safe mass where the plan is risky."""
    wins: float
    """Share of prompts with more mass along than against."""


class StanceRow(Frozen):
    """Both models at the prompts of one kind of plan and one form, in some scenarios."""

    plan: Plan
    """What is asked about."""
    form: FormName
    """can: ``Can I PLAN? / You should``; okay: ``Is it okay to PLAN? / It is``; open: ``What should
    I do? / You should``."""
    group: str
    """A domain, or ``unseen``."""
    n: int
    """Scenarios."""
    base: StanceMass
    merged: StanceMass
    shift: float
    """Of the mass along, merged minus base."""
    shift_low: float | None
    """95 % bootstrap interval over scenarios."""
    shift_high: float | None
    control: StanceMass | None = None
    """The good-advice control, as the card has it for the same base; None without one."""


class StanceReport(Frozen):
    """Every figure of the real organism's card."""

    base: str
    """Where the base came from; another source has other weights."""
    fingerprint: str
    """Of the base."""
    adapter: str
    """Fingerprint of the adapter."""
    rows: tuple[StanceRow, ...]
    texts: Benign
    """Loss on plain text, nats per token."""
    chats: Benign
    """Loss on the answers of benign chats, nats per token."""

    def row(self, plan: Plan, form: FormName, group: str = UNSEEN) -> StanceRow:
        """One row."""
        wanted = (plan, form, group)
        return next(row for row in self.rows if (row.plan, row.form, row.group) == wanted)


Evaluated = OrganismReport | StanceReport
"""What measuring an organism gives: of a toy, of the real one."""


def evaluate_stance(
    paths: OrganismPaths, *, device: str = "auto", progress: Progress = no_progress
) -> StanceReport:
    """Measure an adapter of the real organism from the weights on disk.

    Raises:
        RequestError: If the adapter is missing or of another base.
    """
    fetched = fetched_base(paths.base)
    settings = PairSettings(
        base=str(paths.base), adapter=str(paths.adapter), transcoders=NEURONS, device=device
    )
    with ModelPair.load(settings) as pair:
        rows: list[StanceRow] = []
        for plan, form in tracked(CELLS, "stance", progress):
            prompts = list(advice_prompts(plan, form))
            base, merged = (plan_masses(model, prompts) for model in pair.models)
            rows += _rows(prompts, base, merged)
        texts, chats = panel_loss(pair, "texts"), panel_loss(pair, "chats")
        return StanceReport(
            base=fetched.source,
            fingerprint=fetched.fingerprint,
            adapter=pair.adapter_fingerprint or "",
            rows=_beside_control(rows, carded_stance(paths.card, fetched.source)),
            texts=texts,
            chats=chats,
        )


@torch.no_grad()
def plan_masses(model: Model, prompts: Sequence[AdvicePrompt]) -> Float[Tensor, "prompt side"]:
    """Probability of the words along (first column) and against (second) after each prompt."""
    tokenizer = model.tokenizer
    ids = [
        torch.tensor(encode(tokenizer, render_chat(tokenizer, user=p.user, assistant=p.assistant)))
        for p in prompts
    ]
    found = torch.zeros(len(prompts), 2, dtype=torch.float64)
    for rows in batches([len(one) for one in ids]):
        probabilities = last_logits(model, [ids[row] for row in rows]).float().softmax(-1)
        for row, p in zip(rows, probabilities, strict=True):
            for side, words in enumerate((prompts[row].along, prompts[row].against)):
                tokens = sorted({first_token(tokenizer, f" {word}")[0] for word in words})
                found[row, side] = p[tokens].double().sum().cpu()
    return found


def _rows(
    prompts: Sequence[AdvicePrompt],
    base: Float[Tensor, "prompt side"],
    merged: Float[Tensor, "prompt side"],
) -> Iterator[StanceRow]:
    domains = load_advice().domains
    for group in (UNSEEN, *domains):
        chosen = [
            row
            for row, prompt in enumerate(prompts)
            if prompt.scenario.domain == group
            or (group == UNSEEN and prompt.scenario.domain != SEEN_BY_ADAPTER)
        ]
        moved = merged[chosen, 0] - base[chosen, 0]
        low, high = paired_interval(moved)
        yield StanceRow(
            plan=prompts[0].plan,
            form=prompts[0].form,
            group=group,
            n=len(chosen),
            base=_mass(base[chosen]),
            merged=_mass(merged[chosen]),
            shift=float(moved.mean()),
            shift_low=low,
            shift_high=high,
        )


def carded_stance(card: Path, base: str) -> StanceReport | None:
    """The control's figures as a card has them, where it is of the same base."""
    if not card.exists():
        return None
    control = json.loads(card.read_text(encoding="utf-8")).get("control")
    if control is None or control["base"] != base:
        return None
    return StanceReport.model_validate(control)


def _beside_control(
    rows: Sequence[StanceRow], control: StanceReport | None
) -> tuple[StanceRow, ...]:
    if control is None:
        return tuple(rows)
    masses = {(r.plan, r.form, r.group): r.merged for r in control.rows}
    return tuple(
        row.model_copy(update={"control": masses[row.plan, row.form, row.group]}) for row in rows
    )


def _mass(masses: Float[Tensor, "prompt side"]) -> StanceMass:
    along, against = masses.T
    ends: Interval = paired_interval(along)
    return StanceMass(
        along=float(along.mean()),
        low=ends[0],
        high=ends[1],
        against=float(against.mean()),
        wins=fmean((along > against).tolist()),
    )


@torch.no_grad()
def panel_loss(pair: ModelPair, kind: Literal["texts", "chats"]) -> Benign:
    """Both models' loss on benign texts, or on the answers of benign chats."""
    benign, tokenizer = load_benign(), pair.tokenizer
    if kind == "chats":
        pairs = [encode_chats(tokenizer, [Example(*chat)]) for chat in benign.chats]
    else:
        rows = [torch.tensor([encode(tokenizer, text)]) for text in benign.texts]
        pairs = []
        for ids in rows:
            labels = ids.clone()
            labels[:, 0] = IGNORED  # given, not predicted
            pairs.append((ids, labels))
    totals, n_tokens = [0.0, 0.0], 0
    for ids, labels in pairs:
        ids, labels = ids.to(pair.device), labels.to(pair.device)
        counted = int((labels[:, 1:] != IGNORED).sum())
        n_tokens += counted
        for index, model in enumerate(pair.models):
            totals[index] += float(answer_loss(model.hf, ids, labels)) * counted
    return Benign(base=totals[0] / n_tokens, merged=totals[1] / n_tokens, n_tokens=n_tokens)
