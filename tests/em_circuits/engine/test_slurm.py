"""The batch scripts under a local stand-in for Slurm's commands."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from em_circuits.engine.settings import EngineSettings
from pivotal_tokens.errors import RequestError
from pivotal_tokens.store import Store, default_url

ROOT = Path(__file__).parents[3]
SCRIPTS = ROOT / "scripts" / "slurm"

STAND_INS = {
    # Runs every task of an array in turn, or the script once, as the environment that jobs have.
    "sbatch": """
array=""; nodes=1
while [ "${1#--}" != "$1" ]; do
  case "$1" in --array=*) array="${1#*=}" ;; --nodes=*) nodes="${1#*=}" ;; esac
  shift
done
export SLURM_JOB_NODELIST=127.0.0.1 SLURM_CPUS_PER_TASK=2
if [ -z "$array" ]; then exec bash "$@"; fi
export SLURM_ARRAY_TASK_COUNT=$(( ${array#*-} + 1 ))
for SLURM_ARRAY_TASK_ID in $(seq "${array%-*}" "${array#*-}"); do
  export SLURM_ARRAY_TASK_ID
  bash "$@"
done
""",
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"\n',
    "scontrol": "hostname -i | cut -d' ' -f1\n",
    "em-circuits": f'exec {sys.executable} -m em_circuits "$@"\n',
    "python": f'exec {sys.executable} "$@"\n',
    "ray": f'exec {sys.executable} -m ray.scripts.scripts "$@"\n',
}


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a login node."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\nset -e\n{body}")
        (folder / name).chmod(0o755)
    root = tmp_path / "run"
    return os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "EM_CIRCUITS_ROOT": str(root),
        "EM_CIRCUITS_STORE": default_url(root),
    }


def submit(slurm: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sbatch", *words], env=slurm, cwd=ROOT, capture_output=True, text=True, timeout=600
    )


def labelled(slurm: dict[str, str]) -> int:
    """Prompts that have a verdict."""
    with Store.open(slurm["EM_CIRCUITS_STORE"]) as store:
        (pair,) = store.results.pairs()
        return sum(bool(store.results.verdicts(p.prompt_id, pair)) for p in store.prompts.all())


@pytest.mark.slow
def test_an_array_labels_every_prompt_in_one_of_its_jobs(slurm: dict[str, str]) -> None:
    script = str(SCRIPTS / "label_array.sbatch")
    done = submit(slurm, "--array=0-1", script, "--n", "6", "--no-graphs", "--json")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == labelled(slurm) == 6


def test_a_job_that_lacks_a_store_or_an_array_says_so(slurm: dict[str, str]) -> None:
    script = str(SCRIPTS / "label_array.sbatch")
    assert "submit it as an array" in submit(slurm, script).stderr
    slurm.pop("EM_CIRCUITS_STORE")
    refused = submit(slurm, "--array=0-1", script, "--n", "6")
    assert refused.returncode != 0 and "jobs on several nodes need a server" in refused.stderr


@pytest.mark.skipif(
    importlib.util.find_spec("ray") is None or "TEST_CLUSTER" not in os.environ,
    reason="make test-cluster",
)
def test_a_job_starts_a_cluster_labels_and_ends_it(slurm: dict[str, str]) -> None:
    slurm["RAY_PORT"] = "26379"
    label = ["label", "--n", "4", "--no-graphs", "--json"]
    done = submit(slurm, "--nodes=1", str(SCRIPTS / "ray.sbatch"), *label)
    assert done.returncode == 0, done.stderr[-3000:]
    assert labelled(slurm) == 4
    assert not subprocess.run(["pgrep", "-f", "port=26379"], capture_output=True).stdout


def test_shares_are_disjoint_and_hold_everything() -> None:
    ids = [f"{7919 * i:012x}" for i in range(1000)]
    shares = [EngineSettings(share=f"{i}/7") for i in range(7)]
    taken = [[each for each in ids if share.takes(each)] for share in shares]
    assert sorted(each for some in taken for each in some) == sorted(ids)
    assert min(map(len, taken)) > 100
    assert all(map(EngineSettings().takes, ids))
    for wrong in ("7/7", "a/b", "1", "-1/3", "1/0"):
        with pytest.raises(RequestError, match="for example 0/8"):
            EngineSettings(share=wrong)
