"""Labelling on two nodes of a Ray cluster, one of which is killed in the middle, as are workers.

    python tests/em_circuits/engine/cluster.py --prompts 200

The same prompts go through the local engine first. Every prompt must come out with one verdict and
two graphs, each once by key and sound, byte for byte those of the local engine.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from contextlib import redirect_stdout
from pathlib import Path

from em_circuits.cli.app import run
from em_circuits.graphs.store import GraphStore
from pivotal_tokens.store import Store, default_url


def label(root: Path, n: int, *engine: str) -> float:
    """Label organism prompts; the seconds it took."""
    started = time.monotonic()
    root.mkdir()
    command = ["label", "--n", str(n), "--all-graphs", "--nodes", "24", "--json", *engine]
    with (root / "printed.jsonl").open("w") as printed, redirect_stdout(printed):
        status = run(["--root", str(root), "--store", default_url(root), *command])
    assert status == 0, f"label ended with {status}"
    return time.monotonic() - started


def left(root: Path) -> tuple[dict[str, tuple], dict[str, str]]:
    """What stands in a root: prompt -> its rows, graph key -> SHA-256 of its file."""
    with Store.open(default_url(root)) as store:
        (pair,) = store.results.pairs()
        rows = {
            prompt.prompt_id: (
                store.results.next_tokens(prompt.prompt_id, pair),
                store.results.verdicts(prompt.prompt_id, pair),
                store.labels.of(prompt.prompt_id).by_token,
            )
            for prompt in store.prompts.all()
        }
        records = store.graphs.all()
    assert len({record.key for record in records}) == len(records)
    graphs = GraphStore(root / "graph_storage")
    assert not [each for each in graphs.verify() if each.problem]
    files = {
        record.key: hashlib.sha256((root / record.path).read_bytes()).hexdigest()
        for record in records
    }
    assert len(files) == len(graphs.list())
    return rows, files


def actors() -> list[int]:
    """Process ids of the workers that Ray runs."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and b"ray::_Actor" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def done(root: Path) -> int:
    """Prompts that have graphs."""
    return len(list((root / "graph_storage").glob("*/merged-*.provenance.json")))


def disturb(cluster, node, root: Path, n: int, kills: int, over: threading.Event) -> list[str]:
    """Kill workers and a node, each when so many more prompts are done; what was killed."""
    killed = []
    for step in range(kills + 1):
        while done(root) < n * (step + 1) // (kills + 2):
            if over.wait(0.05):
                return killed
        if step == kills // 2 + 1:
            cluster.remove_node(node, allow_graceful=False)
            killed.append("node")
            continue
        while not (alive := actors()):
            if over.wait(0.05):
                return killed
        os.kill(alive[0], signal.SIGKILL)
        killed.append("worker")
    return killed


def measure(n: int, kills: int, directory: Path) -> str:
    """Run both engines and compare; a line that says what was measured."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    import ray
    from ray.cluster_utils import Cluster

    local, spread = directory / "local", directory / "spread"
    alone = label(local, n)
    print(f"local engine: {alone:.0f} s", flush=True)
    node = {"object_store_memory": 10**8}
    head = node | {"num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    over, killed = threading.Event(), []
    try:
        nodes = [cluster.add_node(num_cpus=2, **node) for _ in range(2)]
        cluster.wait_for_nodes()
        thread = threading.Thread(
            target=lambda: killed.extend(disturb(cluster, nodes[0], spread, n, kills, over))
        )
        thread.start()
        together = label(spread, n, "--engine", f"ray:{cluster.address}", "--workers", "2")
    finally:
        over.set()
        thread.join()
        ray.shutdown()
        cluster.shutdown()
    rows, files = left(spread)
    assert (rows, files) == left(local), "the engines differ"
    assert len(rows) == n and len(files) == 2 * n
    assert killed.count("node") == 1 and killed.count("worker") == kills, killed
    return (
        f"{len(rows)} verdicts and {len(files)} graphs, each once and as the local engine's; "
        f"{kills} workers and a node killed; {together:.0f} s (local {alone:.0f} s)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--kills", type=int, default=3, help="workers")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp())
    try:
        print(measure(arguments.prompts, arguments.kills, directory))
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
