"""Five scores against exact ablation on a real small model, neuron by neuron, on four tasks.

em-circuits organism fetch smollm2
python scripts/score_table.py [--prompts 2] [--nodes 60]

Of each prompt the neurons of the largest first-order effect are really ablated one by one; every
score of the same neurons is compared with that. Tasks: indirect object, subject-verb agreement,
induction, and facts that the model knows.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict

import torch

from em_circuits import load_pair
from em_circuits.activation_cache import ActivationCache
from em_circuits.cli.output import table
from em_circuits.contrast import Contrast
from em_circuits.experiments.validate import live_contrasts
from em_circuits.graphs import attribute
from em_circuits.influence import Method, influence
from em_circuits.interventions.scan import ablation_effects
from em_circuits.models import Model
from em_circuits.models.text import first_token
from em_circuits.statistics import agreement, mean_agreement

TASKS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "indirect object": (
        ("When Mary and John went to the store, John gave a drink to", " Mary", " John"),
        ("After Tom and Anna had lunch, Anna handed the book to", " Tom", " Anna"),
        ("While Paul and Sarah were working, Paul passed a note to", " Sarah", " Paul"),
        ("When Kate and James left the office, Kate sent a letter to", " James", " Kate"),
    ),
    "agreement": (
        ("The keys to the cabinet", " are", " is"),
        ("The author of the books", " is", " are"),
        ("The pictures near the window", " are", " is"),
        ("The teacher behind the students", " is", " are"),
    ),
    "induction": (
        ("river stone cloud lamp river stone cloud", " lamp", " stone"),
        ("garden piano silver horse garden piano silver", " horse", " piano"),
        ("paper tiger window salt paper tiger window", " salt", " tiger"),
        ("bread engine flower coin bread engine flower", " coin", " engine"),
    ),
    "facts": (
        ("The capital of France is the city of", " Paris", " London"),
        ("The capital of Japan is the city of", " Tokyo", " Paris"),
        ("The Colosseum stands in the city of", " Rome", " Paris"),
        ("Big Ben stands in the city of", " London", " Rome"),
    ),
}
"""Task -> prompt, right word, wrong word."""
SCORES = ("gradient", "gradient+measured", "total_effect", "signed_influence", "direct")


def scores_of(model: Model, text: str, words: Contrast, n: int) -> dict[str, torch.Tensor]:
    """Each score, and the measured effects, of the n neurons of the largest gradient."""
    graph = attribute(model, text, words, edges="full", nodes=n)
    features = graph.selected_features
    state = ActivationCache.capture(model, graph.input_ids)
    assert graph.gradient is not None
    weights = words.over(graph.targets.token_ids).float()
    found = {
        "measured": ablation_effects(model, state, targets=words, features=features)[:, 0],
        "gradient": weights @ graph.gradient[:, graph.selected],
        "gradient+measured": live_contrasts(model, state, words, features),
    }
    for method in (Method.TOTAL_EFFECT, Method.SIGNED, Method.DIRECT):
        found[str(method)] = influence(graph, words, method).values[0, : len(features)].float()
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=2, help="of each task")
    parser.add_argument("--nodes", type=int, default=60)
    parser.add_argument("--organism", default="smollm2")
    given = parser.parse_args()
    began = time.process_time()
    rows, known = [], []
    with load_pair(organism=given.organism, transcoders="none") as pair:
        model = pair.base
        for task, prompts in TASKS.items():
            each = defaultdict(list)
            for text, right, wrong in prompts[: given.prompts]:
                ids = [first_token(pair.tokenizer, word)[0] for word in (right, wrong)]
                words = Contrast((ids[0],), (ids[1],))
                logits = model.next_logits(model.input_ids(model.prompt(text)))
                known.append((task, right.strip(), float(logits[ids[0]] - logits[ids[1]])))
                found = scores_of(model, text, words, given.nodes)
                for name in SCORES:
                    each[name].append(agreement(found[name], found["measured"]))
                print(f"{time.process_time() - began:6.0f} s  {task}: {text}", flush=True)
            for name in SCORES:
                mean = mean_agreement(each[name])
                rows.append((task, name, mean.pearson, mean.spearman, mean.sign))
    print("\n" + table(("task", "right", "right minus wrong, logits"), known))
    print("\n" + table(("task", "score", "Pearson", "Spearman", "sign"), rows))


if __name__ == "__main__":
    main()
