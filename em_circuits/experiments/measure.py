"""Measures of every arm of an experiment.

evil mass, contrast     of the next token, by the prompt's labels
verdict                 beside the un-steered base
kl                      from the un-steered model, in nats
off_target_kl           the same on benign prompts (`Panel`)
continuations           judged, and read by the un-steered base (`rollouts`)
forced_evil_rate        the token that was boosted most, appended without steering (`forcing`)

bench = Bench(pair, judge, sampling, panel=Panel.of(model, ids))
piece = bench.measure(case, trial, arms, sampled=(0, 1))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.experiments.cases import Case
from em_circuits.experiments.experiment import Cell, Measurement, Piece, RolloutRow
from em_circuits.experiments.forcing import Forced, force_token
from em_circuits.experiments.rollouts import SteeredRollout, rates, rollouts
from em_circuits.intervention import Intervention
from em_circuits.interventions import ActivationCache, Regime, Treatment, run_rows
from em_circuits.interventions.edits import resolve_units
from em_circuits.interventions.matched_controls import apply_to, random_places
from em_circuits.models import Model, ModelPair
from em_circuits.models.next_tokens import compare, kl_divergence
from em_circuits.models.text import decode_token
from em_circuits.sampling import Sampling
from pivotal_tokens.judge.continuations import ContinuationJudge
from pivotal_tokens.verdict import decide

UNSTEERED, STEERED, RANDOM = "unsteered", "steered", "random"
FORCED = "forced"
"""Of texts, not of rows: the boosted token appended, nothing steered."""
NOOP, FLIPPED, DIRECTION = "noop", "flipped", "direction"


@dataclass(frozen=True)
class Trial:
    """Features of one prompt under one cell of a plan."""

    cell: Cell
    features: str
    """As rows name them."""
    interventions: tuple[Intervention, ...]


@dataclass(frozen=True)
class Arm:
    """One row of the batch in which a trial and its controls are measured."""

    control: str
    draw: int
    treatment: Treatment


def random_arms(
    model: Model,
    state: ActivationCache,
    interventions: Sequence[Intervention],
    *,
    draws: int,
    seed: int,
    regime: Regime = Regime.FREE,
) -> list[Arm]:
    """The same change of matched random features.

    Raises:
        RequestError: If the prompt has too few other active features.
    """
    if not draws:
        return []
    places = random_places(model, state, interventions, n_draws=draws, seed=seed)
    return [
        Arm(
            RANDOM,
            draw,
            Treatment(
                interventions=tuple(resolve_units(state, apply_to(interventions, place))),
                regime=regime,
            ),
        )
        for draw, place in enumerate(places.tolist())
    ]


@dataclass(frozen=True, eq=False)
class Bench:
    """Models, judge and panel that arms are measured with.

    Attributes:
        pair: The models.
        judge: Of continuations.
        sampling: Of continuations; None for next-token effects alone.
        panel: Benign prompts that show the off-target cost; with one, the boosted token of the
            steered arm is forced, too.
    """

    pair: ModelPair
    judge: ContinuationJudge
    sampling: Sampling | None
    panel: Panel | None = None

    def measure(
        self, case: Case, trial: Trial, arms: Sequence[Arm], *, sampled: Sequence[int]
    ) -> Piece:
        """Rows of every arm and continuations of some.

        Args:
            arms: The un-steered model first; all of one regime.
            sampled: Numbers of those that get continuations and a place on the panel.
        """
        model, regime = self.pair.model(case.model), arms[0].treatment.regime
        logits = run_rows(model, case.state, [arm.treatment for arm in arms], regime)
        figures = [self._next_token(case, row, logits[0]) for row in logits]
        chosen = [arms[i].treatment for i in sampled]
        cost: dict[int, float] = {}
        if self.panel is not None and self.panel.states:
            costs = self.panel.cost(chosen, n_pos=case.state.n_pos)
            cost = dict(zip(sampled, costs.tolist(), strict=True))
        texts: dict[int, list[SteeredRollout]] = {}
        if self.sampling is not None:
            drawn = rollouts(self.pair, case, chosen, self.sampling, self.judge)
            texts = dict(zip(sampled, drawn, strict=True))
        head = {"prompt_id": case.prompt.prompt_id, "domain": case.domain}
        head |= {**trial.cell.model_dump(), "features": trial.features}
        head |= {f"{n}_unsteered": figures[0][n] for n in ("evil_mass", "contrast", "verdict")}
        rows: list[Measurement] = []
        lines: list[RolloutRow] = []
        for i, arm in enumerate(arms):
            row = head | figures[i] | {"control": arm.control, "draw": arm.draw}
            row["off_target_kl"] = cost.get(i)
            forced = None
            if i in texts:
                row |= rates(texts[i]).model_dump()
            if arm.control == STEERED and self.panel is not None and self.sampling is not None:
                token = figures[i]["boosted_token"]
                forced = force_token(
                    self.pair, case, arm.treatment, token, self.sampling, self.judge
                )
                row |= {"forced_evil_rate": forced.evil_rate, "after_kl": forced.after_kl}
                row["unscored"] += forced.unscored
            rows.append(Measurement(**row))
            lines += [_rollout_row(rows[-1], rollout) for rollout in texts.get(i, ())]
            lines += [] if forced is None else _forced_rows(rows[-1], forced)
        return Piece(rows=tuple(rows), rollouts=tuple(lines))

    def _next_token(
        self, case: Case, logits: Float[Tensor, " vocab"], unsteered: Float[Tensor, " vocab"]
    ) -> dict[str, Any]:
        measured = case.contrast.value(logits)
        rise = logits.float().softmax(-1) - unsteered.float().softmax(-1)
        token = int(rise.argmax())
        tokens = compare(self.pair, case.base_logits, logits)
        return {
            "evil_mass": float(case.contrast.evil_mass(logits)),
            "contrast": None if measured is None else float(measured),
            "verdict": decide(tokens.base, tokens.merged, case.labels).kind,
            "kl": float(kl_divergence(unsteered, logits)),
            "boosted_token": token,
            "boosted_text": decode_token(self.pair.tokenizer, token),
            "boosted_by": float(rise[token]),
        }


def _rollout_row(row: Measurement, rollout: SteeredRollout) -> RolloutRow:
    return RolloutRow(
        prompt_id=row.prompt_id,
        condition=row.condition,
        control=row.control,
        draw=row.draw,
        sample=rollout.sample,
        text=rollout.text,
        token=rollout.said.token,
        label=rollout.label,
        reason=rollout.reason,
        log_likelihood=rollout.log_likelihood,
        repetition=rollout.repetition,
    )


def _forced_rows(row: Measurement, forced: Forced) -> list[RolloutRow]:
    return [
        RolloutRow(
            prompt_id=row.prompt_id,
            condition=row.condition,
            control=FORCED,
            draw=row.draw,
            sample=sample,
            text=text,
            token=forced.first,
            label=label,
            reason=reason,
        )
        for sample, (text, (label, reason)) in enumerate(
            zip(forced.texts, forced.labels, strict=True)
        )
    ]


@dataclass(frozen=True, eq=False)
class Panel:
    """Benign prompts under one model.

    A position counts from the prompt's end there (what was done at the last position is done at the
    last); values are those of the prompt that the treatment was made for.
    """

    model: Model
    states: tuple[ActivationCache, ...]

    @classmethod
    def of(cls, model: Model, prompts: Sequence[Int64[Tensor, " _"]]) -> Panel:
        """Capture the un-steered model on every prompt."""
        return cls(model, tuple(ActivationCache.capture(model, ids) for ids in prompts))

    def cost(self, treatments: Sequence[Treatment], *, n_pos: int) -> Float[Tensor, " treatment"]:
        """Mean KL divergence of the next token from the un-steered model, in nats.

        Args:
            treatments: Of one regime, values absolute.
            n_pos: Tokens of the prompt that their positions speak of.
        """
        if not treatments or not self.states:
            return torch.zeros(len(treatments))
        rows, states = [], []
        for treatment in treatments:
            for state in self.states:
                items = _shifted(treatment.interventions, state.n_pos - n_pos, state)
                rows.append(treatment.model_copy(update={"interventions": items}))
                states.append(state)
        logits = run_rows(self.model, states, rows, treatments[0].regime)
        before = torch.stack([state.logits for state in states])  # one per row, as the logits
        return kl_divergence(before, logits).view(len(treatments), -1).mean(1).cpu()


def _shifted(
    interventions: Sequence[Intervention], by: int, state: ActivationCache
) -> tuple[Intervention, ...]:
    """Positions counted from the end; what falls off the front is left out."""
    shifted = []
    for item in interventions:
        if isinstance(item.position, int):
            if item.position + by not in range(state.first_position, state.n_pos):
                continue
            item = item.model_copy(update={"position": item.position + by})
        shifted.append(item)
    return tuple(shifted)
