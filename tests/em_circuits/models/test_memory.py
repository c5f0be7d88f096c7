"""Sizes of models before they are loaded, and what is left of a machine's memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lifelike import Lifelike
from test_pair import settings

from em_circuits.models.fingerprint import FingerprintCache
from em_circuits.models.memory import ModelSizes, available_bytes
from em_circuits.models.source import locate, locate_all
from pivotal_tokens.errors import RequestError


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
        ModelSizes.of(locate_all(chosen)["base"])
    assert "\n" not in str(refused.value) and str(lifelike_copy.base) in str(refused.value)


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


GIB = 1 << 30


def machine(root: Path, group: str, **files: str) -> Path:
    """A file system with 32 GiB free, this process's control group, and what those say."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "meminfo").write_text(f"MemAvailable: {32 * GIB // 1024} kB\n")
    (root / "proc" / "self" / "cgroup").write_text(group + "\n")
    (root / "proc" / "self" / "statm").write_text("100 50 0\n")
    for name, text in files.items():
        path = root / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v2(limit: str, used: int, inactive: int = 0) -> dict[str, str]:
    return {
        "memory.max": limit,
        "memory.current": str(used),
        "memory.stat": f"anon 1\ninactive_file {inactive}\n",
    }


def within(folder: str, files: dict[str, str]) -> dict[str, str]:
    return {f"{folder}/{name}": text for name, text in files.items()}


@pytest.mark.parametrize(
    ("group", "files", "left"),
    [
        ("0::/", {}, 32),
        ("0::/", v2("max", 5), 32),
        ("0::/", v2(str(8 * GIB), 3 * GIB), 5),
        # file pages that nobody uses are given up when memory is needed
        ("0::/job", within("job", v2(str(8 * GIB), 7 * GIB, 4 * GIB)), 5),
        # nested: the tightest of all levels
        (
            "0::/slurm/job/step",
            within("slurm/job/step", v2("max", 1))
            | within("slurm/job", v2(str(6 * GIB), 2 * GIB))
            | within("slurm", v2(str(20 * GIB), 3 * GIB)),
            4,
        ),
        # version 1, and a path of the host's within a container
        (
            "5:cpu:/a\n4:memory,hugetlb:/docker/abc",
            {
                "memory/memory.limit_in_bytes": str(10 * GIB),
                "memory/memory.usage_in_bytes": str(4 * GIB),
                "memory/memory.stat": f"total_inactive_file {GIB}\n",
            },
            7,
        ),
    ],
)
def test_every_control_group_counts(
    tmp_path: Path, group: str, files: dict[str, str], left: int
) -> None:
    root = machine(tmp_path, group, **files)
    assert available_bytes(torch.device("cpu"), root) == left * GIB


@pytest.mark.parametrize(
    ("variables", "left"),
    [
        ({"SLURM_MEM_PER_NODE": "4096"}, 4),
        ({"SLURM_MEM_PER_CPU": "1024", "SLURM_CPUS_ON_NODE": "3"}, 3),
        ({"SLURM_MEM_PER_NODE": "0"}, 32),  # all of the node's
    ],
)
def test_a_slurm_jobs_memory_counts(
    tmp_path: Path, variables: dict[str, str], left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = available_bytes(torch.device("cpu"), machine(tmp_path, "0::/"))
    assert left * GIB - GIB // 100 < found <= left * GIB
