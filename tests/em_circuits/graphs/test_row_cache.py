"""A build that is stopped goes on where it was, and gives the same graph bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from subjects import EVERY_SUBJECT, Subject, lifelike_settings

from em_circuits.graphs import (
    AttributionGraph,
    AttributionSettings,
    GraphStore,
    build_pair_graphs,
    held,
)
from em_circuits.graphs.held import _Held
from em_circuits.graphs.row_cache import RowCache, row_path
from em_circuits.graphs.store import STALE_SECONDS
from em_circuits.models import ModelPair

SETTINGS = AttributionSettings(edges="measured", nodes=40, batch_size=6)
CONTENT = 64 * "a"


class Interrupted(Exception):
    """What a person's Ctrl-C stands for."""


def stop_after(n: int, step: str) -> Callable[[str, int, int], None]:
    def progress(name: str, done: int, _total: int) -> None:
        if name == step and done >= n:
            raise Interrupted

    return progress


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batched backward and forward passes, as they come."""
    sizes: list[int] = []
    pulled_back, run = _Held.pulled_back, _Held.run

    def backward(self, outputs, cotangents):
        sizes.append(len(cotangents))
        return pulled_back(self, outputs, cotangents)

    def forward(self):
        if self.amounts is not None:
            sizes.append(len(self.amounts) - 1)
        return run(self)

    monkeypatch.setattr(_Held, "pulled_back", backward)
    monkeypatch.setattr(_Held, "run", forward)
    return sizes


def build(subject: Subject, scratch: Path | None, **more) -> tuple[AttributionGraph, ...]:
    prompt = subject.pair.prompt(subject.pair.tokenizer.decode(subject.input_ids[1:]))
    return build_pair_graphs(subject.pair, prompt, SETTINGS, scratch=scratch, **more).both


def assert_same(left: AttributionGraph, right: AttributionGraph) -> None:
    assert torch.equal(left.selected, right.selected)
    for one, other in ((left.edges, right.edges), (left.measured, right.measured)):
        assert one is not None and other is not None
        assert torch.equal(one.to_dense(), other.to_dense())


@EVERY_SUBJECT
@pytest.mark.parametrize("step", ["full edges", "measured edges"])
def test_an_interrupted_build_computes_only_what_is_missing(
    subject: Subject, step: str, tmp_path: Path, computed: list[int]
) -> None:
    whole = build(subject, None)
    everything = sum(computed)
    computed.clear()
    with pytest.raises(Interrupted):
        build(subject, tmp_path, progress=stop_after(12, step))
    before = sum(computed)
    computed.clear()
    again = build(subject, tmp_path)
    assert before >= 12 and before + sum(computed) == everything
    for left, right in zip(whole, again, strict=True):
        assert_same(left, right)
    assert len(list(tmp_path.glob(".*.rows"))) == 4  # both models, both kinds
    store = GraphStore(tmp_path)
    for graph in again:
        store.save(graph, {})
    assert list(tmp_path.glob(".*")) == []


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from em_circuits.graphs import AttributionSettings, build_pair_graphs
from em_circuits.models import ModelPair, PairSettings

def progress(name, done, total):
    if name == "full edges" and done >= 18:
        os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
pair = ModelPair.load(PairSettings.model_validate_json(sys.argv[1]))
prompt = pair.prompt(sys.argv[2])
settings = AttributionSettings.model_validate_json(sys.argv[3])
build_pair_graphs(pair, prompt, settings, scratch=Path(sys.argv[4]), progress=progress)
"""


def test_a_killed_build_goes_on(tmp_path: Path, computed: list[int]) -> None:
    settings = lifelike_settings(tmp_path)
    scratch, text = tmp_path / "graphs", "User: The scaffold looks loose today. Climb?"
    arguments = [settings.model_dump_json(), text, SETTINGS.model_dump_json(), str(scratch)]
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert run.returncode == -signal.SIGKILL
    (left,) = scratch.glob(".*.rows")
    with left.open("ab") as file:  # as if the kill had come within a record
        file.write(b"half a record")
    with ModelPair.load(settings) as pair:
        prompt = pair.prompt(text)
        whole = build_pair_graphs(pair, prompt, SETTINGS).both
        everything = sum(computed)
        computed.clear()
        again = build_pair_graphs(pair, prompt, SETTINGS, scratch=scratch).both
    assert sum(computed) <= everything - 18
    for one, other in zip(whole, again, strict=True):
        assert_same(one, other)


def test_a_file_cut_anywhere_gives_only_whole_rows(tmp_path: Path) -> None:
    path, values = row_path(tmp_path, "key", "full"), torch.randn(5, 3)
    with RowCache(path, CONTENT, 3) as cache:
        for i in range(5):
            cache.put(torch.tensor([i]), values[i : i + 1])
    whole = path.read_bytes()
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        with RowCache(path, CONTENT, 3) as cache:
            found = [cache.get(torch.tensor([i])) for i in range(5)]
            there = [i for i, row in enumerate(found) if row is not None]
            assert there == list(range(max(end - 64, 0) // (8 + 12 + 4)))
            assert all(torch.equal(found[i], values[i : i + 1]) for i in there)
            cache.put(torch.tensor([4]), values[4:])
        with RowCache(path, CONTENT, 3) as cache:
            assert torch.equal(cache.get(torch.tensor([4])), values[4:])


def test_a_changed_byte_and_other_content_are_not_read(tmp_path: Path) -> None:
    path, rows = row_path(tmp_path, "key", "full"), torch.arange(4)
    with RowCache(path, CONTENT, 3) as cache:
        cache.put(rows, torch.ones(4, 3))
    whole = bytearray(path.read_bytes())
    whole[64 + 24 + 10] ^= 1
    path.write_bytes(whole)
    with RowCache(path, CONTENT, 3) as cache:
        assert cache.get(rows[:1]) is not None and cache.get(rows[1:2]) is None
        assert cache.get(rows[2:]) is None
    with RowCache(path, 64 * "b", 3) as cache:
        assert cache.get(rows[:1]) is None
    with RowCache(path, CONTENT, 3) as cache:
        assert cache.get(rows[:1]) is None


def test_a_file_that_another_build_writes_is_left_alone(tmp_path: Path) -> None:
    path, row = row_path(tmp_path, "key", "full"), torch.tensor([0])
    with RowCache(path, CONTENT, 2) as cache:
        with RowCache(path, 64 * "b", 2) as second:
            assert torch.equal(second.put(row, torch.ones(1, 2)), torch.ones(1, 2))
            assert second.get(row) is None
        cache.put(row, torch.zeros(1, 2))
    with RowCache(path, CONTENT, 2) as cache:
        assert torch.equal(cache.get(row), torch.zeros(1, 2))


def test_stale_rows_are_removed_and_fresh_ones_kept(tmp_path: Path) -> None:
    for key in ("stale", "fresh"):
        with RowCache(row_path(tmp_path, key, "full"), CONTENT, 2):
            pass
    past = time.time() - STALE_SECONDS - 60
    os.utime(row_path(tmp_path, "stale", "full"), (past, past))
    GraphStore(tmp_path).prune()
    assert [path.name for path in tmp_path.iterdir()] == [".fresh.full.rows"]


def test_rows_are_computed_in_halves_where_the_accelerator_runs_out(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build(subject, None)
    sizes: dict[str, list[int]] = {"backward": [], "forward": []}
    pulled_back, run = _Held.pulled_back, _Held.run

    def held_within(kind: str, n: int, most: int) -> None:
        sizes[kind].append(n)
        if n > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def backward(self, outputs, cotangents):
        held_within("backward", len(cotangents), 2)
        return pulled_back(self, outputs, cotangents)

    def forward(self):
        if self.amounts is not None:
            held_within("forward", len(self.amounts), 3)
        return run(self)

    monkeypatch.setattr(_Held, "pulled_back", backward)
    monkeypatch.setattr(_Held, "run", forward)
    tight = build(subject, None)
    # Measured edges subtract logits, each a sum of d_model products: how it rounds depends on the
    # kernel that a processor takes for so many rows.
    width = subject.model.hf.config.hidden_size
    for left, right in zip(whole, tight, strict=True):
        rounding = width**0.5 * torch.finfo(torch.float32).eps * left.targets.logits.abs().max()
        pairs = ((left.edges, right.edges, 0.0), (left.measured, right.measured, rounding))
        for one, other, more in pairs:
            a, b = one.to_dense(), other.to_dense()
            assert (a - b).abs().max() <= 1e-5 * a.abs().max() + more
    refused = [n for n in sizes["backward"] if n > 2]
    assert refused == [6, 3, 6, 3]  # once a model: what did not fit is not tried again
    assert max(sizes["forward"][4:]) <= 7


def test_a_single_row_that_does_not_fit_is_an_error(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_arguments: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(held._Held, "pulled_back", never)
    with pytest.raises(torch.OutOfMemoryError):
        build(subject, None)
