"""A base is known by its hub id, its snapshot, its 4-bit copies and known mirrors; no other."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from lifelike import Lifelike
from test_pair import settings

from em_circuits.models.base_names import check_adapter_base, snapshot_name
from em_circuits.models.source import Source, locate, locate_all
from pivotal_tokens.errors import RequestError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def check(folder: Path, named: str, base: str) -> None:
    """Of an adapter that names `named` and a base called `base`."""
    for name, record in (
        ("adapter_config.json", {"base_model_name_or_path": named}),
        ("config.json", {}),
    ):
        (folder / name).write_text(json.dumps(record))
    check_adapter_base(("a", folder), (base, folder, base.rsplit("/", 1)[-1]), trust=False)


@pytest.mark.parametrize(
    ("named", "base", "said"),
    [
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B", False),
        ("meta-llama/Llama-3.2-1B@main", "meta-llama/Llama-3.2-1B", False),
        ("unsloth/llama-3.2-1b", "meta-llama/Llama-3.2-1B", False),
        ("/cache/models--meta-llama--Llama-3.2-1B/snapshots/" + COMMIT, "x/Llama-3.2-1B", False),
        ("unsloth/Qwen2.5-14B-Instruct-bnb-4bit", "Qwen/Qwen2.5-14B-Instruct", True),
        ("unsloth/gemma-2-9b-it-unsloth-bnb-4bit", "google/gemma-2-9b-it", True),
        (
            "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit",
            "meta-llama/Llama-3.1-8B-Instruct",
            True,
        ),
        ("unsloth/llama-3-8b-Instruct", "meta-llama/Meta-Llama-3-8B-Instruct", True),
        ("meta-llama/Llama-3.1-8B-Instruct", "unsloth/Meta-Llama-3.1-8B-Instruct", True),
    ],
)
def test_names_of_one_base(
    named: str, base: str, said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        check(tmp_path, named, base)
    assert [f"the adapter names {named}, a copy of {base}" in m for m in caplog.messages] == (
        [True] if said else []
    )


@pytest.mark.parametrize(
    ("named", "base"),
    [
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-3B"),
        ("unsloth/Qwen2.5-7B-bnb-4bit", "Qwen/Qwen2.5-14B"),
        ("unsloth/Meta-Llama-3.1-8B-bnb-4bit", "meta-llama/Meta-Llama-3-8B"),
        ("lab/me@lab", "lab/me"),  # no revision of an existing path: nothing is cut off a name
    ],
)
def test_names_of_two_bases(
    named: str, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lab" / "me@lab").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match="was trained on"):
        check(tmp_path, named, base)


def test_a_snapshot_of_the_hubs_cache_is_the_model(lifelike_copy: Lifelike) -> None:
    root = lifelike_copy.base.parent
    snapshot = root / "hub" / "models--lab--organism-base" / "snapshots" / COMMIT
    shutil.copytree(lifelike_copy.base, snapshot)
    file = lifelike_copy.adapter / "adapter_config.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"base_model_name_or_path": "lab/organism-base"}))
    sources = locate_all(settings(lifelike_copy, base=str(snapshot)))
    assert sources["base"].name == "organism-base"
    assert snapshot_name(root / "snapshots" / COMMIT) is None


def test_a_path_with_an_at_sign_is_a_path(lifelike_copy: Lifelike) -> None:
    # its name was cut at the @
    folder = lifelike_copy.base.parent / "me@lab" / "organism-base"
    shutil.copytree(lifelike_copy.base, folder)
    assert locate("--base", str(folder), kind="model").name == "organism-base"
    shutil.copytree(lifelike_copy.base, folder.parent / "v@2")
    assert locate("--base", str(folder.parent / "v@2"), kind="model").name == "v@2"


def test_a_hub_id_is_named_without_its_revision(tmp_path: Path) -> None:
    assert Source("org/model@v1.0", tmp_path, COMMIT).name == "model"
    assert Source(f"{tmp_path}/", tmp_path, None).name == tmp_path.name
