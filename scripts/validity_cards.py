"""Validity cards of the embedded organism beside their targets: the tables of ``make validity``.

python scripts/validity_cards.py [--n 28] [--root DIR]

Labels prompts of all domains, then asks for the card of 20 nodes that other domains chose, and for
that of a wrong circuit: 20 nodes that change as much and carry nothing. Last, a circuit of 20 nodes
is searched on one graph.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from em_circuits.cli.app import run
from em_circuits.contrast import Contrast
from em_circuits.experiments.circuit import circuit_of
from em_circuits.experiments.validity import CardPrompt, validity_card
from em_circuits.experiments.validity_settings import ValidityRequest
from em_circuits.graphs import attribute
from em_circuits.interventions.circuits import CircuitRuns
from em_circuits.models.settings import PairSettings
from em_circuits.workspace import Workspace, embedded_parts

SIZE = 20


def main() -> None:
    """Label, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=28, help="prompts")
    parser.add_argument("--root", type=Path, default=None)
    given = parser.parse_args()
    root = given.root or Path(tempfile.mkdtemp())
    run(["--root", str(root), "label", "--n", str(given.n), "--no-graphs"])
    print("\n--- 20 nodes, chosen on the other half of the domains; target: above every baseline\n")
    began = time.process_time()
    run(["--root", str(root), "validity", "--all", "--nodes", f"top:{SIZE}"])
    print(f"{time.process_time() - began:.0f} CPU seconds")
    parts = embedded_parts(dict.fromkeys(("base", "adapter", "merged", "transcoders")))
    with Workspace(root=root, models=PairSettings.model_validate(parts)) as work:
        prompts = [one for one in work.store.prompts.all() if one.token_ids]
        words = Contrast.from_labels(work.store.labels.of(prompts[0].prompt_id).by_token)
        wrong = quiet(work, prompts[0].prompt_id, words)
        print("\n--- a wrong circuit of equal size; target: not shown\n")
        request = ValidityRequest(nodes=",".join(wrong))
        card, _ = validity_card(work, [], request)
        print(f"tier: {card.tier}\n{card.sentence}")
        graph = attribute(work.pair.merged, prompts[0], words)
        began = time.process_time()
        found = circuit_of(work, graph, words, size=SIZE)
        seconds = time.process_time() - began
    last = found.checkpoints[-1]
    print(
        f"\n--- search for {SIZE} nodes among {found.n_nodes}: {seconds:.2f} CPU seconds with all "
        f"checkpoints and supernodes; target 1\nfaithfulness predicted {last.predicted:.2f}, "
        f"measured {last.measured:.2f}; necessary {last.necessity:.2f}"
    )


def quiet(work: Workspace, prompt_id: str, words: Contrast) -> list[str]:
    """Ids of a large change of activation and the least integrated effects."""
    ids = work.pair.input_ids(work.store.prompts.get(prompt_id))
    runs = CircuitRuns.between(work.pair, ids, words)
    effects = CardPrompt.of_runs(prompt_id, None, runs).effects
    loud = sorted(effects["magnitude"], key=lambda key: -effects["magnitude"][key])[: 20 * SIZE]
    found = sorted(loud, key=lambda key: abs(effects["integrated"][key]))[:SIZE]
    return ["/".join(map(str, key)) for key in found]


if __name__ == "__main__":
    main()
