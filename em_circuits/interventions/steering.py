"""Steering of one prompt, beside matched random features under the same treatment.

Three conditions in the same batches: undisturbed, steered (all interventions together), and at
least 20 matched random draws that get the very same treatment.

    result = steer(model, input_ids, interventions, words)
    result.steered.evil_mass - result.unsteered.evil_mass

Under a target of `em_circuits.target` the contrast is its value, teacher-forced: of two
continuations the difference of their log-probabilities, and evil mass the evil one's probability.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from em_circuits.activation_cache import ActivationCache
from em_circuits.contrast import Contrast
from em_circuits.intervention import Intervention, Regime
from em_circuits.interventions.edits import check_interventions, no_op_interventions
from em_circuits.interventions.matched_controls import (
    MIN_DRAWS,
    apply_to,
    check_draws,
    random_places,
)
from em_circuits.interventions.run import run_rows, run_values
from em_circuits.interventions.steer_result import (
    Outcome,
    Outcomes,
    RandomControl,
    Steered,
    SteerResult,
    TopToken,
)
from em_circuits.models.pair import Model, PromptLike, id_of
from em_circuits.models.text import decode_token
from em_circuits.spread import Spread
from em_circuits.target import Target
from pivotal_tokens.errors import RequestError


def steer(
    model: Model,
    prompt: PromptLike,
    interventions: Sequence[Intervention],
    contrast: Contrast | Target,
    *,
    regime: Regime = Regime.FREE,
    n_random: int = MIN_DRAWS,
    seed: int = 0,
    by: str | None = None,
) -> SteerResult:
    """Apply all interventions together, beside the undisturbed model and random controls.

    Args:
        model: The model that is steered.
        prompt: A text, a prompt, or token ids with the beginning-of-sequence token in front.
        interventions: At least one, each feature at a position at most once.
        contrast: Tokens whose probability and logits are measured, or any target.
        regime: What is frozen meanwhile.
        n_random: Control draws, at least 20.
        seed: Of the draws.
        by: How the features were chosen, as outputs name it; interventions that come from a table
            say so themselves.

    Returns:
        Evil mass (0 to 1), contrast (logits, or the target's unit) and next tokens, un-steered,
        steered and random.

    Raises:
        RequestError: If an intervention has no place, the control is too small, the prompt has
            too few other active features to draw it from, or a continuation is too long.
    """
    check_draws(n_random)
    if not interventions:
        raise RequestError("no intervention was given; name at least one feature")
    ids = model.input_ids(prompt)
    if isinstance(contrast, Target):
        contrast.check_length(len(ids), model.max_tokens)
    state = ActivationCache.capture(model, ids)
    check_interventions(model, interventions, state.n_pos)
    places = random_places(model, state, interventions, n_draws=n_random, seed=seed)
    rows = [[], list(interventions), *(apply_to(interventions, draw) for draw in places.tolist())]
    if isinstance(contrast, Target):
        logits = run_rows(model, state, rows[:2], regime)
        values = run_values(model, state, rows, contrast.terms, regime)
    else:
        logits = values = run_rows(model, state, rows, regime)
    mass, contrasts = contrast.evil_mass(values), contrast.value(values)

    def outcome(row: int) -> Outcome:
        return Outcome(
            evil_mass=None if mass is None else float(mass[row]),
            contrast=None if contrasts is None else float(contrasts[row]),
            top=top_tokens(model, logits[row]),
        )

    modes = {(item.mode, item.value) for item in interventions}
    mode, value = modes.pop() if len(modes) == 1 else (None, None)
    spread = None if contrasts is None else Spread.of(contrasts[2:])
    return SteerResult(
        prompt_id=id_of(prompt),
        intervention=Steered(
            model=model.name,
            regime=regime,
            mode=mode,
            value=value,
            by=str(by or getattr(interventions, "by", "name")),
            features=tuple(interventions),
            asleep=len(no_op_interventions(state, interventions)),
            target=contrast.name if isinstance(contrast, Target) else None,
        ),
        worlds=Outcomes(
            unsteered=outcome(0),
            steered=outcome(1),
            random_control=RandomControl(
                n=n_random,
                evil_mass=None if mass is None else Spread.of(mass[2:]),
                contrast=spread,
            ),
        ),
        random_places=tuple(tuple(map(tuple, draw)) for draw in places.tolist()),
    )


def top_tokens(model: Model, logits: Float[Tensor, " vocab"], n: int = 10) -> tuple[TopToken, ...]:
    """The n likeliest next tokens, ties by token id."""
    probabilities = logits.float().softmax(-1)
    order = torch.sort(probabilities, descending=True, stable=True).indices[:n].tolist()
    return tuple(
        TopToken(
            token_id=i, text=decode_token(model.tokenizer, i), probability=float(probabilities[i])
        )
        for i in order
    )
