"""Memory plans beside measured peaks, at a real model's shape.

python scripts/full_shape.py results/full --layers 5
python scripts/bench_real.py results/full
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path


class AnonymousPeak:
    """Largest anonymous resident memory of this process within the block, sampled (Linux)."""

    def __init__(self) -> None:
        self.bytes, self._over = 0, threading.Event()

    def __enter__(self):
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            status = Path("/proc/self/status").read_text()
            line = next(x for x in status.splitlines() if x.startswith("RssAnon"))
            self.bytes = max(self.bytes, 1024 * int(line.split()[1]))

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()


def one(folder: str, tokens: int, dtype: str, place: str, edges: str, root: str) -> None:
    import torch

    torch.set_num_threads(1)
    from full_shape import prompt_of

    from em_circuits.graphs import AttributionSettings
    from em_circuits.labelling.graphs import build_graphs
    from em_circuits.models.settings import PairSettings
    from em_circuits.workspace import Workspace
    from pivotal_tokens.schema import Prompt

    parts = {
        n: f"{folder}/{d}"
        for n, d in (
            ("base", "llama-3.2-1b"),
            ("adapter", "adapter"),
            ("transcoders", "transcoders"),
        )
    }
    settings = PairSettings(**parts, dtype=dtype, transcoders_on=place)
    marks = []
    with (
        Workspace(
            Path(root),
            settings,
            create=True,
            attribution=AttributionSettings(edges=edges, max_feature_nodes=512),
        ) as work,
        AnonymousPeak() as peak,
    ):
        work.n_pos = tokens
        plan = work.plan(tokens)
        t = time.time()
        work.pair
        marks.append(("load", peak.bytes))
        prompt = work.pair.prompt(Prompt.of(prompt_of(tokens)))
        work.require_healthy(prompt)
        marks.append(("health", peak.bytes))

        def progress(step, done, total):
            if done in (0, total) or done == 64:
                marks.append((step + str(done), round(peak.bytes / 1e9, 2)))

        work.progress = progress

        build_graphs(work, prompt, work.attribution)
    print(
        json.dumps(
            {
                "peak": peak.bytes,
                "plan": plan.total,
                "weights": plan.weights,
                "tr": plan.transcoders,
                "attr": plan.attribution,
                "active": plan.n_active,
                "s": time.time() - t,
                "cpu": time.process_time(),
                "marks": marks,
            }
        )
    )


if __name__ == "__main__":
    one(*([sys.argv[1], int(sys.argv[2])] + sys.argv[3:]))
