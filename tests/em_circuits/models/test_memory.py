"""The plan grows with what it is a plan of, and refuses early."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from lifelike import Lifelike
from test_pair import settings
from tiny_families import make_family

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


@pytest.mark.parametrize("name", ["gpt-2", "gemma-3-multimodal", "gpt-oss"])
def test_a_family_that_words_its_configuration_otherwise_has_a_plan(
    name: str, tmp_path: Path
) -> None:
    """GPT-2's ``n_embd``; a language model within a multimodal one."""
    chosen = make_family(tmp_path, name).settings()
    wide, narrow = (
        memory_plan(chosen, locate_all(chosen), max_feature_nodes=n).attribution for n in (2000, 20)
    )
    assert wide > narrow > 0


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"model_type": "unheard-of"}', "no language model that transformers knows"),
        ("{}", "no language model that transformers knows"),
        ("not JSON", "is not JSON"),
        ('{"model_type": "llama", "num_hidden_layers": 0}', "no layers or no width"),
        ('{"model_type": "llama", "hidden_size": null}', "no language model"),
    ],
)
def test_a_configuration_of_no_language_model_is_refused_by_file(
    lifelike_copy: Lifelike, config: str, said: str
) -> None:
    (lifelike_copy.base / "config.json").write_text(config)
    chosen = settings(lifelike_copy)
    with pytest.raises(RequestError, match=said) as refused:
        memory_plan(chosen, locate_all(chosen))
    assert "\n" not in str(refused.value) and str(lifelike_copy.base) in str(refused.value)


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
