"""Three hypothesis tests of a circuit (Shi et al. 2024, arXiv:2410.13032, sec. 3).

| test | null hypothesis | an ideal circuit |
|---|---|---|
| equivalence | circuit and model are as likely to outdo each other, up to epsilon | keeps it |
| independence | what is left without the circuit says nothing of the model's score | keeps it |
| minimality | removing a node matters more than removing one that was added at random | keeps it |

The score is the contrast on a prompt. A circuit found in a trained model nearly always fails the
first: its scores are lower throughout. The tests say what the ideal is; a card passes without them.

    equivalence_p(kept - whole), independence_p(whole, removed), minimality_p(change, random)
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

EPSILON = 0.1
"""Distance from one half within which circuit and model count as equally good."""
QUANTILE = 0.9
"""Share of random nodes that a node of a minimal circuit outdoes."""
_PERMUTATIONS = 1000


def equivalence_p(differences: Float[Tensor, " prompt"], *, epsilon: float = EPSILON) -> float:
    """p of "the circuit outdoes the model on a share of prompts within epsilon of one half".

    The binomial tail on both sides at the edge of the null, ``1/2 + epsilon`` (their eq. 4).

    Args:
        differences: Score of the circuit minus that of the model.
    """
    n = len(differences)
    seen = abs(float((differences > 0).double().mean()) - 0.5)
    high = 0.5 + epsilon
    tail = sum(
        math.comb(n, k) * high**k * (1 - high) ** (n - k)
        for k in range(n + 1)
        if abs(k / n - 0.5) >= seen - 1e-12
    )
    return min(1.0, tail)


def independence_p(
    whole: Float[Tensor, " prompt"], rest: Float[Tensor, " prompt"], *, seed: int = 0
) -> float | None:
    """p of "scores without the circuit are independent of the model's", by permutation of HSIC.

    Source: Gretton et al. (2007); Gaussian kernels of the median distance's width.

    Returns:
        None where a side does not vary, or below five prompts.
    """
    if len(whole) < 5 or float(whole.std()) == 0 or float(rest.std()) == 0:
        return None
    x, y = _centred_kernel(whole.double()), _centred_kernel(rest.double())
    seen = float((x * y).sum())
    generator = torch.Generator().manual_seed(seed)
    larger = 0
    for _ in range(_PERMUTATIONS):
        order = torch.randperm(len(whole), generator=generator)
        larger += float((x * y[order][:, order]).sum()) >= seen
    return (1 + larger) / (1 + _PERMUTATIONS)


def _centred_kernel(values: Float[Tensor, " prompt"]) -> Float[Tensor, "prompt prompt"]:
    distance = (values[:, None] - values[None]).abs()
    width = distance[distance > 0].median()
    kernel = torch.exp(-distance.square() / (2 * width**2))
    return kernel - kernel.mean(0) - kernel.mean(1)[:, None] + kernel.mean()


def minimality_p(
    changes: Float[Tensor, " node"], random: Float[Tensor, " draw"], *, quantile: float = QUANTILE
) -> Float[Tensor, " node"]:
    """p, by node, of "it matters more than `quantile` of the nodes that are added at random".

    Args:
        changes: Size of the score's change when a node of the circuit is removed.
        random: The same of a random node in a circuit inflated by it.
    """
    from scipy.stats import binomtest

    outdone = (changes[:, None] > random[None]).sum(1).tolist()
    found = [binomtest(k, n=len(random), p=quantile, alternative="less").pvalue for k in outdone]
    return torch.tensor(found)
