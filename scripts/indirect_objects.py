"""How much of indirect objects a few neurons of a real small model carry: faithfulness by size.

em-circuits organism fetch smollm2
python scripts/indirect_objects.py [--prompts 12]

"When Mary and John went to the store, John gave a drink to" against the same sentence with a third
name as its subject, or with three other names. Neurons outside the circuit take their values in
that other sentence (resampling), attention runs freely. Faithfulness is the share of the contrast
of both names between all neurons replaced and none. Circuits are the first neurons by the
integrated gradient: by id, chosen on one half of the templates for the other, and by id and
position, chosen on the very prompt (in-sample).
"""

from __future__ import annotations

import argparse
import random
import time

import torch

from em_circuits import load_pair
from em_circuits.cli.output import table
from em_circuits.contrast import Contrast
from em_circuits.experiments.validity import CardPrompt, ranked_keys
from em_circuits.interventions.circuits import CircuitRuns
from em_circuits.models import ModelPair
from em_circuits.models.text import first_token
from em_circuits.organisms.classic_tasks import NAMES, TEMPLATES

SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
OTHERS = {"a third name": "{0} {1} {4}", "three other names": "{2} {3} {4}"}


def prompts_of(pair: ModelPair, other: str, n: int) -> list[CardPrompt]:
    """Prompts that the base model completes rightly, with their runs."""
    generator, found = random.Random(0), []
    while len(found) < n:
        template = TEMPLATES[len(found) % len(TEMPLATES)]
        names = generator.sample(NAMES, 5)
        right, wrong = (first_token(pair.tokenizer, f" {name}")[0] for name in names[:2])
        text = template.format(names[0], names[1], names[1])
        ids, other_ids = (
            pair.input_ids(pair.prompt(each))
            for each in (text, template.format(*other.format(*names).split()))
        )
        logits = pair.base.next_logits(ids)
        if len(ids) == len(other_ids) and logits[right] > logits[wrong]:
            words = Contrast((right,), (wrong,))
            runs = CircuitRuns.resampled(pair.base, ids, other_ids, words)
            found.append(CardPrompt.of_runs(text, template, runs))
    return found


def by_id(judged: list[CardPrompt], n_neurons: int) -> torch.Tensor:
    """Faithfulness at each size of the circuit that the other templates choose."""
    kept, shift = torch.zeros(len(SHARES)), 0.0
    for template in dict.fromkeys(one.category for one in judged):
        others = [one for one in judged if one.category != template]
        order = ranked_keys(others, "integrated")
        for one in judged:
            if one.category == template:
                sets = [one.expand(order[: round(share * n_neurons)]) for share in SHARES]
                kept += one.runs.kept(sets) - one.runs.ends[1]
                shift += one.runs.shift
    return kept / shift


def in_sample(judged: list[CardPrompt]) -> torch.Tensor:
    """Faithfulness at each size of each prompt's own neurons, position by position."""
    kept, shift = torch.zeros(len(SHARES)), 0.0
    for one in judged:
        order = one.runs.scores()["integrated"]().argsort(descending=True)
        sets = [order[: round(share * len(order))].sort().values for share in SHARES]
        kept += one.runs.kept(sets) - one.runs.ends[1]
        shift += one.runs.shift
    return kept / shift


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=12)
    given = parser.parse_args()
    began, rows = time.process_time(), []
    with load_pair(organism="smollm2", transcoders="none") as pair:
        n_neurons = sum(dictionary.width for dictionary in pair.base.dictionaries)
        for name, other in OTHERS.items():
            judged = prompts_of(pair, other, given.prompts)
            for chosen, shares in (
                ("on other templates, by id", by_id(judged, n_neurons)),
                ("in-sample, by position", in_sample(judged)),
            ):
                rows.append((name, chosen, *(f"{share:.2f}" for share in shares.tolist())))
            print(f"{time.process_time() - began:6.0f} s  {name}", flush=True)
    print("\n" + table(("replaced by", "chosen", *(f"{share:.1%}" for share in SHARES)), rows))


if __name__ == "__main__":
    main()
