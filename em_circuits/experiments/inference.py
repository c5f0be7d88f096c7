"""Did the steered features do more than others would have?

Per prompt p, with e the change under steering and r_1 ... r_m those under matched random draws,

    net_p = e_p - mean(r_p)

Interval: over prompts where there are several (paired bootstrap: a prompt is drawn with its
control); for one prompt, its change minus the middle 95 % of its draws. Test: if the features were
like any others, each prompt's steered change could as well have been any of its draws; so one of
the m + 1 is drawn per prompt,

    p = (1 + #{|mean net of a draw| >= |mean net|}) / (1 + draws)

"Works" means: the interval of net does not contain 0.

    result = against_control(steered, random)
    result.net, result.low, result.high, result.p
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from em_circuits.features.resample import bootstrap_interval

DRAWS = 2000
_TIE = 1e-9


@dataclass(frozen=True)
class AgainstControl:
    """A mean change beside that of its control."""

    n_prompts: int
    change: float
    control: float
    net: float
    low: float
    high: float
    p: float

    @property
    def works(self) -> bool:
        """The interval of the net change leaves 0 out."""
        return self.low > 0 or self.high < 0


def against_control(
    steered: Float[Tensor, " prompt"], random: Float[Tensor, "prompt draw"], *, seed: int = 0
) -> AgainstControl:
    """Compare changes under steering with those under matched random draws.

    Args:
        steered: Change of each prompt.
        random: Changes of its control draws.
        seed: Of the resamples.
    """
    e, r = steered.double(), random.double()
    net = e - r.mean(1)
    if len(e) > 1:
        known = torch.ones((len(e), 1), dtype=torch.bool)
        low, high = (
            float(end[0]) for end in bootstrap_interval(net[:, None], known, draws=DRAWS, seed=seed)
        )
    else:
        ends = torch.quantile(r[0], torch.tensor([0.975, 0.025]).double())
        low, high = (float(e[0] - end) for end in ends)
    return AgainstControl(
        n_prompts=len(e),
        change=float(e.mean()),
        control=float(r.mean()),
        net=float(net.mean()),
        low=low,
        high=high,
        p=_randomised(e, r, seed),
    )


def paired_interval(
    differences: Float[Tensor, " block"], *, seed: int = 0
) -> tuple[float | None, float | None]:
    """95 % bootstrap interval of a mean of paired differences; None below two of them."""
    if len(differences) < 2:
        return None, None
    values = differences.double()[:, None]
    known = torch.ones_like(values, dtype=torch.bool)
    low, high = bootstrap_interval(values, known, draws=DRAWS, seed=seed)
    return float(low[0]), float(high[0])


def _randomised(e: Tensor, r: Tensor, seed: int) -> float:
    """Each prompt's steered change trades places with one of its draws."""
    everyone = torch.cat([e[:, None], r], dim=1)
    n = everyone.shape[1]
    # Chosen minus the mean of the others, for every choice of every prompt.
    net = (everyone * n - everyone.sum(1, keepdim=True)) / (n - 1)
    real = abs(float(net[:, 0].mean())) * (1 - _TIE)
    if len(e) == 1:
        return float((net[0].abs() >= real).double().mean())
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(n, (DRAWS, len(e)), generator=generator)
    means = net.T.gather(0, chosen).mean(1)
    return float((1 + (means.abs() >= real).sum()) / (1 + DRAWS))
