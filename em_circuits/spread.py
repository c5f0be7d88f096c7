"""Mean, standard deviation and middle 95 % of several draws; read back without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class Spread(BaseModel, frozen=True):
    """Values of several draws: mean, standard deviation and their middle 95 %."""

    mean: float
    sd: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Float[Tensor, " draw"]) -> Spread:
        """Summarise at least two values."""
        from em_circuits.statistics import quantile_interval

        values = values.double().cpu()
        low, high = quantile_interval(values)
        assert low is not None and high is not None
        return cls(mean=float(values.mean()), sd=float(values.std()), low=low, high=high)
