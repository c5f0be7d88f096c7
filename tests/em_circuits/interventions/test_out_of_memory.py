"""Batches are halved where memory does not hold them, and the figures stay the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from subjects import Subject

from em_circuits.activation_cache import ActivationCache
from em_circuits.graphs import gradient
from em_circuits.interventions import adapter_mediation, adapter_paths, adapter_shares, integrated
from em_circuits.interventions.generation import Sampling, _Run, generate
from em_circuits.interventions.run import Batch, run_rows, run_values
from em_circuits.models.memory import BatchSize

CUDA = torch.OutOfMemoryError("CUDA out of memory")
HOST = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")


def test_batches_are_halved_for_good_and_one_item_must_fit() -> None:
    size, seen = BatchSize(5), []

    def work(start: int, stop: int) -> range:
        seen.append(stop - start)
        if stop - start > 2:
            raise MemoryError
        return range(start, stop)

    found = list(size.over(7, work))
    assert [item for _, part in found for item in part] == list(range(7))
    assert [start for start, _ in found] == [0, 2, 4, 6] and seen == [5, 2, 2, 2, 1]
    with pytest.raises(RuntimeError, match="memory"):
        list(BatchSize(4).over(9, lambda *_: (_ for _ in ()).throw(HOST)))
    with pytest.raises(RuntimeError, match="shape"):
        list(BatchSize(4).over(9, lambda *_: (_ for _ in ()).throw(RuntimeError("shape"))))


def _captured(subject: Subject) -> tuple[Any, ActivationCache, torch.Tensor]:
    model = subject.pair.base
    state = ActivationCache.capture(model, subject.input_ids)
    return model, state, subject.groups.weights(len(state.logits))


def _rows(subject: Subject) -> torch.Tensor:
    model, state, _ = _captured(subject)
    return run_rows(model, state, [[]] * 5)


def _values(subject: Subject) -> torch.Tensor:
    model, state, weights = _captured(subject)
    return run_values(model, state, [[]] * 5, weights[None])


def _continuations(subject: Subject) -> torch.Tensor:
    model, state, _ = _captured(subject)
    return generate(model, state, [[]] * 5, Sampling(samples=2, max_tokens=3, seed=1)).tokens


def _gradients(subject: Subject) -> torch.Tensor:
    model, state, weights = _captured(subject)
    return gradient.mlp_output_gradients(model, state.input_ids, weights.repeat(4, 1))


def _integrated(subject: Subject) -> torch.Tensor:
    model, state, weights = _captured(subject)
    end = torch.zeros(len(state.active))
    start = state.activations.float()
    return integrated.integrated_effects(
        model, state.input_ids, state.active, start, end, weights[None]
    )


def _adapter(subject: Subject) -> torch.Tensor:
    pair = subject.pair
    weights = _captured(subject)[2]
    found = adapter_mediation.adapter_effects(pair, subject.input_ids, weights)
    return torch.cat([found.paths.integrated.carriers, found.measured.random.flatten()])


@pytest.mark.parametrize("error", [CUDA, HOST], ids=["cuda", "host"])
@pytest.mark.parametrize(
    ("owner", "name", "rows", "work"),
    [
        (Batch, "run", lambda batch, **_: batch.hooks.edits.n_rows, _rows),
        (Batch, "values", lambda batch, *_: batch.hooks.edits.n_rows, _values),
        (_Run, "run", lambda run, *_, **__: len(run._rows), _continuations),
        (gradient, "gradients_at", lambda *given: len(given[-1]), _gradients),
        (integrated, "_gradients", lambda *given: len(given[3]), _integrated),
        (adapter_paths._Line, "_split", lambda _line, points, _: len(points), _adapter),
        (adapter_shares.HeldRuns, "_run", lambda _runs, some, _: len(some[0]), _adapter),
    ],
)
def test_every_sized_batch_is_tried_again_in_halves(
    subject: Subject,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    rows: Callable[..., int],
    work: Callable[[Subject], torch.Tensor],
    error: Exception,
) -> None:
    if subject.name != "organism":
        pytest.skip("once is enough")
    whole, original, refused = work(subject), getattr(owner, name), []

    def within(*arguments: Any, **more: Any) -> Any:
        if rows(*arguments, **more) > 1:
            refused.append(rows(*arguments, **more))
            raise error
        return original(*arguments, **more)

    monkeypatch.setattr(owner, name, within)
    halved = work(subject)
    assert refused and torch.allclose(whole.float(), halved.float(), rtol=1e-3, atol=1e-4)
