"""Greedy selection: the set of features with the largest joint ablation effect, one at a time.

Effects do not add up: removing the second feature of a pair that does one job costs more than the
first did, and a feature whose work rests on another's has none left once that one is gone. So every
step is measured on the real model: of the candidates, the one joins whose ablation beside those
already chosen raises the set's measured effect most.

    greedy_scores(model, state, words, targets)              # features of one prompt
    greedy_ids(model, states_and_words, candidates, k=10)    # ids over several prompts

Greedy, so not the best of all sets; but nothing in it is an estimate, and a step costs one row per
candidate. Candidates come from `joint_scores`, which needs no more than a few backward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from em_circuits.activation_cache import ActivationCache
from em_circuits.contrast import Contrast
from em_circuits.feature import FeatureId
from em_circuits.intervention import Mode, Where, on_each
from em_circuits.interventions.integrated import joint_scores
from em_circuits.interventions.run import run_rows
from em_circuits.interventions.scan import set_effects
from em_circuits.models import Model
from em_circuits.target import Columns, Target

CANDIDATES = 40
"""Features of the largest joint scores that may join a prompt's set."""
ID_CANDIDATES = 60
"""The same for (layer, feature id) over several prompts."""
CHOSEN = 20
"""Features of one prompt whose order is measured; the others follow by joint score."""


def select_greedily(
    measure: Callable[[list[list[int]]], Float[Tensor, " set"]], *, n_candidates: int, k: int
) -> list[int]:
    """Grow a set one by one, each time by the candidate that makes its value largest.

    Args:
        measure: Values of some sets of candidates, which differ in their last member alone.
        n_candidates: Candidates are 0 to this number minus one.
        k: Members wanted.

    Returns:
        At most k candidates, in the order in which they joined; ties go to the lowest.
    """
    chosen: list[int] = []
    while len(chosen) < min(k, n_candidates):
        rest = [candidate for candidate in range(n_candidates) if candidate not in chosen]
        values = measure([[*chosen, candidate] for candidate in rest])
        chosen.append(rest[int(values.argmax())])
    return chosen


def greedy_scores(
    model: Model,
    state: ActivationCache,
    contrast: Contrast | Target,
    targets: Int[Tensor, " target"],
    *,
    k: int = CHOSEN,
    n_candidates: int = CANDIDATES,
) -> tuple[Float[Tensor, "target active"], Int64[Tensor, " chosen"]]:
    """Choose features of one prompt to be ablated together.

    Args:
        model: The model that is run.
        state: The prompt, captured on it.
        contrast: Evil and safe tokens, or a target: what the set is to lower.
        targets: Token ids that are scored, those of the contrast among them; not read of a target,
            whose terms are scored.
        k: Features chosen by measurement.
        n_candidates: Features that may be.

    Returns:
        Scores in the order of ``state.active``, in logits: of a chosen feature what it added to the
        measured effect when it joined, of the others their joint scores; and the indices of the
        chosen ones, in the order in which they joined.

    Raises:
        RequestError: If there is no contrast, or a token of it is no target.
    """
    scores = joint_scores(model, state, contrast, targets)
    weights = contrast.over(targets, strict=True).float()
    best = (weights @ scores).topk(min(n_candidates, scores.shape[1])).indices
    places = state.active.cpu()[best]
    columns: Columns = contrast.terms if isinstance(contrast, Target) else targets

    added: dict[int, Float[Tensor, " target"]] = {}

    def effects(sets: list[list[int]]) -> Float[Tensor, " set"]:
        """What each last member adds; of a chosen one what it did when it joined remains."""
        every = torch.tensor(sets)
        found = set_effects(
            model, state, places[every[:, -1:]], targets=columns, beside=places[every[0, :-1]]
        )
        added.update(zip(every[:, -1].tolist(), found, strict=True))
        return found @ weights

    order = select_greedily(effects, n_candidates=len(best), k=k)
    for candidate in order:
        scores[:, best[candidate]] = added[candidate]
    return scores, best[torch.tensor(order, dtype=torch.int64)]


def greedy_ids(
    model: Model,
    prompts: Sequence[tuple[ActivationCache, Contrast]],
    candidates: Sequence[FeatureId],
    *,
    k: int,
) -> tuple[FeatureId, ...]:
    """Choose feature ids to be ablated together at every position of several prompts.

    Args:
        model: The model that is run.
        prompts: Captured on it, each with its contrast; the contrasts count alike.
        candidates: Features that may be chosen.
        k: Ids wanted.
    """

    def lowered(sets: list[list[int]]) -> Float[Tensor, " set"]:
        rows = [
            on_each(
                ((candidates[i].layer, None, candidates[i].feature) for i in members),
                Mode.ABLATE,
                where=Where.PROMPT,
            )
            for members in sets
        ]
        total = torch.zeros(len(sets))
        for state, contrast in prompts:
            values = contrast.value(run_rows(model, state, rows))
            assert values is not None
            total -= values.cpu()
        return total

    order = select_greedily(lowered, n_candidates=len(candidates), k=k)
    return tuple(candidates[i] for i in order)
