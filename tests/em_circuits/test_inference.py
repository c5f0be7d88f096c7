"""Intervals and tests against the matched control."""

from __future__ import annotations

import itertools

import pytest
import torch

from em_circuits.statistics import against_control, paired_interval


def test_one_prompt_is_set_beside_its_own_draws() -> None:
    random = torch.linspace(-1, 1, 41)[None]
    result = against_control(torch.tensor([3.0]), random)
    assert (result.change, result.control, result.net) == pytest.approx((3.0, 0.0, 3.0), abs=1e-9)
    assert (result.low, result.high) == pytest.approx((3 - 0.95, 3 + 0.95), abs=0.06)
    assert result.p == pytest.approx(1 / 42) and result.works
    among = against_control(torch.tensor([0.5]), random)
    assert not among.works and among.p > 0.4


def test_prompts_are_resampled_with_their_control() -> None:
    generator = torch.Generator().manual_seed(0)
    level = 5 * torch.randn(30, generator=generator)  # shared by a prompt and its control
    random = level[:, None] + 0.1 * torch.randn((30, 20), generator=generator)
    steered = level + 0.5 + 0.1 * torch.randn(30, generator=generator)
    result = against_control(steered, random)
    assert result.low < 0.5 < result.high and result.high - result.low < 0.2
    assert result.works and result.p < 0.001
    nothing = against_control(random[:, 0], random[:, 1:])
    assert not nothing.works and nothing.p > 0.05


def test_the_p_value_is_that_of_every_exchange() -> None:
    """The slow oracle: all choices of one arm per prompt."""
    generator = torch.Generator().manual_seed(1)
    random = torch.randn((3, 4), generator=generator).double()
    steered = torch.tensor([1.2, 0.9, 0.4]).double()
    arms = torch.cat([steered[:, None], random], 1)

    def mean_net(choice: tuple[int, ...]) -> float:
        nets = []
        for row, chosen in zip(arms, choice, strict=True):
            rest = torch.cat([row[:chosen], row[chosen + 1 :]])
            nets.append(float(row[chosen] - rest.mean()))
        return abs(sum(nets) / len(nets))

    real = mean_net((0, 0, 0))
    every = [mean_net(choice) for choice in itertools.product(range(5), repeat=3)]
    exact = sum(value >= real - 1e-12 for value in every) / len(every)
    assert against_control(steered, random).p == pytest.approx(exact, abs=0.03)


def test_an_interval_needs_two_blocks() -> None:
    assert paired_interval(torch.tensor([1.0])) == (None, None)
    low, high = paired_interval(torch.tensor([1.0, 2.0, 3.0, 2.0]))
    assert low is not None and high is not None and 1 <= low < 2 < high <= 3
