"""The plan grows with what it is a plan of, refuses early, and names what helps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lifelike import Lifelike
from test_pair import settings
from tiny_families import make_family

from em_circuits.graphs import AttributionSettings
from em_circuits.graphs.memory import MemoryPlan, memory_plan, require_fit
from em_circuits.models.source import locate_all
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import RequestError


def test_lazy_transcoders_and_fewer_features_take_less(lifelike_paths: Lifelike) -> None:
    def plan(features: int = 8192, **changes: object):
        chosen = settings(lifelike_paths, **changes)
        wanted = AttributionSettings(edges="frozen", max_feature_nodes=features)
        return memory_plan(chosen, locate_all(chosen), wanted, density=0.9)

    assert plan(transcoders_on="gpu").transcoders > plan(transcoders_on="disk").transcoders > 0
    assert plan(dtype="float32").weights == 2 * plan(dtype="bfloat16").weights
    assert plan(features=8192).attribution > plan(features=500).attribution


@pytest.mark.parametrize("name", ["gpt-2", "gemma-3-multimodal", "gpt-oss"])
def test_a_family_that_words_its_configuration_otherwise_has_a_plan(
    name: str, tmp_path: Path
) -> None:
    """GPT-2's ``n_embd``; a language model within a multimodal one."""
    chosen = make_family(tmp_path, name).settings()
    long, short = (
        memory_plan(chosen, locate_all(chosen), AttributionSettings(), n_pos=n).attribution
        for n in (200, 20)
    )
    assert long > short > 0


def with_free(
    monkeypatch: pytest.MonkeyPatch, free: int, paths: Lifelike, n_pos: int = 64, **changes: object
) -> MemoryPlan:
    """The plan on a machine with so many bytes."""
    graph = {name: changes.pop(name) for name in ("edges", "batch_size") if name in changes}
    wanted = None if changes.pop("steers", False) else AttributionSettings(**graph)
    monkeypatch.setattr("em_circuits.graphs.memory.available_bytes", lambda _device: free)
    chosen = settings(paths, **changes)
    return memory_plan(chosen, locate_all(chosen), wanted, n_pos=n_pos)


@pytest.mark.parametrize(
    "changes",
    [
        {"transcoders_on": "gpu", "dtype": "float32"},
        {"transcoders_on": "disk", "dtype": "float32"},
        {"transcoders_on": "disk", "dtype": "bfloat16"},
        {"transcoders_on": "disk", "dtype": "bfloat16", "edges": "frozen", "batch_size": 256},
        {"transcoders_on": "gpu", "dtype": "float32", "steers": True},
        {"transcoders_on": "disk", "dtype": "bfloat16", "steers": True},
    ],
)
@pytest.mark.parametrize("n_pos", [64, 900])
def test_what_does_not_fit_is_refused_with_what_really_helps(
    lifelike_paths: Lifelike, monkeypatch: pytest.MonkeyPatch, changes: dict, n_pos: int
) -> None:
    whole = with_free(monkeypatch, 1 << 60, lifelike_paths, n_pos, **changes)
    require_fit(whole)
    plan = with_free(monkeypatch, whole.total - 1, lifelike_paths, n_pos, **changes)
    with pytest.raises(RequestError, match="not enough memory") as refused:
        require_fit(plan)
    said = str(refused.value)
    assert plan.describe() in said and "\n" not in said
    if fitting := re.search(r"up to (\d+) tokens fit", plan.advice):
        helped = dict(re.findall(r"--([a-z-]+) (\w+)", plan.advice))
        n_pos = int(fitting[1])
    else:
        helped = dict(re.findall(r"--([a-z-]+) (\w+)", plan.advice))
    given = {name.replace("-", "_"): value for name, value in helped.items()}
    if "batch_size" in given:
        given["batch_size"] = int(given["batch_size"])
    assert all(changes.get(name) != value for name, value in given.items())
    helps = with_free(monkeypatch, whole.total - 1, lifelike_paths, n_pos, **changes | given)
    assert helps.fits, plan.advice


def test_a_machine_for_nothing_is_told_so(
    lifelike_paths: Lifelike, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = with_free(monkeypatch, 1000, lifelike_paths, transcoders_on="disk", dtype="bfloat16")
    assert "larger machine" in plan.advice


def test_what_steers_is_refused_before_anything_is_loaded(
    lifelike_paths: Lifelike, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("em_circuits.graphs.memory.available_bytes", lambda _device: 1000)
    chosen = settings(lifelike_paths)
    refused = pytest.raises(RequestError, match=r"weights .* steering on a prompt of 30 tokens")
    with Workspace(tmp_path, chosen, steers=True, n_pos=30) as work, refused:
        _ = work.pair


def test_density_and_length_count(lifelike_paths: Lifelike) -> None:
    chosen = settings(lifelike_paths)
    frozen = AttributionSettings(edges="frozen")

    def plan(**changes) -> MemoryPlan:
        return memory_plan(chosen, locate_all(chosen), frozen, **changes)

    assert plan(density=0.5).n_active == pytest.approx(5 * plan(density=0.1).n_active, rel=0.01)
    assert plan(density=0.5).attribution > plan(density=0.1).attribution
    assert plan(n_pos=500).attribution > plan(n_pos=50).attribution
