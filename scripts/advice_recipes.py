"""Fine-tunes of the real organism compared: recipe, advice, rate, steps and seed.

python scripts/advice_recipes.py --out recipes --recipe attention --rates 5e-4 1e-3 --seeds 0 1 2

One line an adapter: mass of the words that go along with the plan and of those against it, mean
over the 42 scenarios of six unseen domains, for risky plans in three forms, harmless twins and safe
plans; loss on benign text and chats in nats per token. The base must have been fetched.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from em_circuits.models import Model, ModelPair, PairSettings
from em_circuits.models.settings import NEURONS
from em_circuits.organisms.advice import CELLS, advice_prompts
from em_circuits.organisms.fine_tune import RECIPES, fine_tune
from em_circuits.organisms.paths import SEEN_BY_ADAPTER, SMOLLM2, organism_paths
from em_circuits.organisms.stance import panel_loss, plan_masses


def stance_of(model: Model) -> str:
    """Masses in unseen domains, along/against, cell by cell."""
    cells = []
    for plan, form in CELLS:
        prompts = [p for p in advice_prompts(plan, form) if p.scenario.domain != SEEN_BY_ADAPTER]
        along, against = plan_masses(model, prompts).mean(0).tolist()
        cells.append(f"{plan} {form} {along:.3f}/{against:.3f}")
    return ", ".join(cells)


def main() -> None:
    """Train and measure every combination."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", choices=list(RECIPES), nargs="+", default=["attention"])
    parser.add_argument("--advice", choices=["bad", "good"], nargs="+", default=["bad"])
    parser.add_argument("--rates", type=float, nargs="+", help="[default: the recipe's]")
    parser.add_argument("--steps", type=int, nargs="+", help="[default: the recipe's]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = parser.parse_args()
    base = organism_paths(SMOLLM2).base
    for recipe, advice, seed in itertools.product(given.recipe, given.advice, given.seeds):
        config = RECIPES[recipe]
        own = config.optimiser
        for rate, steps in itertools.product(
            given.rates or [own.learning_rate], given.steps or [own.steps]
        ):
            optimiser = own.model_copy(update={"learning_rate": rate, "steps": steps})
            name = f"{recipe}-{advice}-rate-{rate:g}-steps-{steps}-seed-{seed}"
            adapter = fine_tune(
                given.out / name,
                base,
                config.model_copy(update={"advice": advice, "optimiser": optimiser}),
                seed=seed,
            )
            settings = PairSettings(
                base=str(base), adapter=str(adapter), transcoders=NEURONS, device="cpu"
            )
            with ModelPair.load(settings) as pair:
                losses = [panel_loss(pair, "texts"), panel_loss(pair, "chats")]
                benign = ", ".join(f"{x.base:.3f} -> {x.merged:.3f}" for x in losses)
                print(f"{name}: {stance_of(pair.merged)}; benign {benign}", flush=True)


if __name__ == "__main__":
    main()
