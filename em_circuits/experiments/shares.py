"""Shares of the shift over prompts: ratios of sums, with bootstrap intervals over prompts."""

from __future__ import annotations

from jaxtyping import Float64
from torch import Tensor

from em_circuits.statistics import quantile_interval, ratio_interval
from pivotal_tokens.schema import Frozen


class Share(Frozen):
    """A share of the shift, a ratio of sums over prompts, with its 95 % interval; None where there
    is no shift."""

    share: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.share is None:
            return "no known share"
        if self.low is None:
            return f"{self.share:.0%}"
        return f"{self.share:.0%} ({self.low:.0%} to {self.high:.0%})"

    @classmethod
    def of(
        cls, logits: Float64[Tensor, " prompt"], shifts: Float64[Tensor, " prompt"], seed: int
    ) -> Share:
        """What came back over what there was, each summed over prompts."""
        if not shifts.sum() > 0:
            return cls(share=None, low=None, high=None)
        low, high = ratio_interval(logits, shifts, seed=seed) or (None, None)
        return cls(share=float(logits.sum() / shifts.sum()), low=low, high=high)

    @classmethod
    def of_draws(
        cls, logits: Float64[Tensor, "prompt draw"], shifts: Float64[Tensor, " prompt"]
    ) -> Share:
        """Mean and middle 95 % of random draws, each a ratio of sums over prompts."""
        if not shifts.sum() > 0:
            return cls(share=None, low=None, high=None)
        shares = logits.sum(0) / shifts.sum()
        low, high = quantile_interval(shares)
        return cls(share=float(shares.mean()), low=low, high=high)
