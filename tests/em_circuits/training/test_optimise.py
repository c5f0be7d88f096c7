"""Training of a small module: rates, and what a resumed run remembers."""

import pytest
import torch

from em_circuits.training.optimise import OptimiserConfig, optimise, reproducible


def test_the_rate_warms_up_to_its_peak_and_falls_to_a_tenth():
    config = OptimiserConfig(steps=110, learning_rate=1.0, warmup=10)
    assert config.rate(0) == pytest.approx(0.1)
    assert config.rate(10) == pytest.approx(1.0)
    assert config.rate(60) == pytest.approx(0.55)
    assert config.rate(110) == pytest.approx(0.1)


def test_a_resumed_run_takes_the_steps_an_uninterrupted_one_takes(tmp_path):
    config = OptimiserConfig(steps=7, learning_rate=0.1, warmup=2, checkpoint_every=2)

    def train(path, stop_at):
        with reproducible(3):
            module = torch.nn.Linear(3, 2)

        def loss_at(step):
            if step == stop_at:
                raise KeyboardInterrupt
            return (module(torch.full((4, 3), float(step))) - 1).pow(2).mean()

        optimise(module, loss_at, config, checkpoint=path, label="test")
        return module.state_dict()

    whole = train(tmp_path / "whole", None)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", 5)
    resumed = train(tmp_path / "broken", None)
    for name, value in whole.items():
        assert torch.equal(value, resumed[name])


def test_the_generator_and_the_threads_are_as_before():
    torch.manual_seed(1)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    with reproducible(5):
        assert torch.get_num_threads() == 1
        torch.rand(3)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads
