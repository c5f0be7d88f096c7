"""The plan grows with what it is a plan of, and refuses early."""

from __future__ import annotations

from dataclasses import replace

import pytest
from lifelike import Lifelike
from test_pair import settings

from em_circuits.models.fingerprint import FingerprintCache
from em_circuits.models.memory import memory_plan, require_fit
from em_circuits.models.source import locate, locate_all
from pivotal_tokens.errors import RequestError


def test_lazy_transcoders_and_fewer_features_take_less(lifelike_paths: Lifelike) -> None:
    def plan(features: int = 8192, **changes: object):
        chosen = settings(lifelike_paths, **changes)
        return memory_plan(chosen, locate_all(chosen), max_feature_nodes=features)

    assert plan(transcoders_on="gpu").transcoders > plan(transcoders_on="disk").transcoders > 0
    assert plan(dtype="float32").weights == 2 * plan(dtype="bfloat16").weights
    assert plan(features=8192).attribution > plan(features=500).attribution


def test_what_does_not_fit_is_refused_with_advice(lifelike_paths: Lifelike) -> None:
    chosen = settings(lifelike_paths)
    plan = memory_plan(chosen, locate_all(chosen))
    require_fit(plan)
    with pytest.raises(RequestError, match=r"not enough memory: .*--transcoders-on disk"):
        require_fit(replace(plan, available=plan.total - 1))


def test_fingerprints_are_remembered_until_a_file_changes(
    lifelike_copy: Lifelike, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered = lifelike_copy.base.parent / "fingerprints.json"

    def fingerprint() -> str:
        source = locate("--transcoders", str(lifelike_copy.transcoders), kind="transcoders")
        return FingerprintCache(remembered).of(source.files)

    first = fingerprint()

    def refuse(_path: object) -> str:
        raise AssertionError("hashed again")

    with monkeypatch.context() as patch:
        patch.setattr("em_circuits.models.fingerprint.sha256_file", refuse)
        assert fingerprint() == first
    file = lifelike_copy.transcoders / "config.yaml"
    file.write_text(file.read_text() + "# more\n")
    assert fingerprint() != first
