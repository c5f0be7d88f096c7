"""Rank-1 `down_proj` adapters on the organism's base: layer, steps and learning rate compared.

python scripts/adapter_forms.py --out forms --layers 0 1 2 3 --rates 1e-3 3e-3 1e-2

One line an adapter: evil mass in the six domains that its training never showed and in the one it
did, share of unseen prompts with an evil verb on top, rise of the benign loss in nats per token.
The prompts are held out, and others than the model card's (--seed). With --control, the base of a
control organism (`organism train --card`), each adapter's control stands beside it.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
from pathlib import Path

from em_circuits.models import ModelPair, PairSettings
from em_circuits.organisms import organism_paths, organism_prompts
from em_circuits.organisms.evaluate import SEEN_BY_ADAPTER, behaviour, benign_losses, verb_masses
from em_circuits.organisms.paths import TOY_DOWN_PROJ
from em_circuits.organisms.train import CONFIGS, OrganismConfig, train_organism


def figures(out: Path, base: Path, config: OrganismConfig, *, n: int, seed: int) -> str:
    """Train an adapter on a base and measure it."""
    if not (out / base.name).exists():
        shutil.copytree(base, out / base.name)
    paths = train_organism(out, 0, config, with_transcoders=False)
    settings = PairSettings(
        base=str(paths.base),
        adapter=str(paths.adapter),
        transcoders=str(organism_paths().transcoders),
        device="cpu",
    )
    prompts = list(organism_prompts(n, seed=seed))
    with ModelPair.load(settings) as pair:
        merged = behaviour(verb_masses(pair.merged.hf, pair.tokenizer, prompts))
        benign = benign_losses(pair, seed=seed)
    return (
        f"evil mass unseen {merged.evil_mass_unseen:.3f} "
        f"(least domain {min(merged.evil_mass_lexicon.values()):.3f}), "
        f"medical {merged.evil_mass_lexicon[SEEN_BY_ADAPTER]:.3f}, "
        f"top-1 evil {merged.top1_evil:.3f}, benign {benign.merged - benign.base:+.4f}"
    )


def main() -> None:
    """Train and measure every combination."""
    best = CONFIGS[TOY_DOWN_PROJ]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, nargs="+", default=list(best.adapter_form.layers))
    parser.add_argument("--steps", type=int, nargs="+", default=[best.adapter.steps])
    parser.add_argument("--rates", type=float, nargs="+", default=[best.adapter.learning_rate])
    parser.add_argument("--control", type=Path, help="base of a control organism")
    parser.add_argument("--prompts", type=int, default=140)
    parser.add_argument("--seed", type=int, default=2, help="of the prompts; the card's is 1")
    given = parser.parse_args()
    bases = {"": organism_paths().base} | ({"control ": given.control} if given.control else {})
    for layer, steps, rate in itertools.product(given.layers, given.steps, given.rates):
        form = best.adapter_form.model_copy(update={"layers": (layer,)})
        optimiser = best.adapter.model_copy(update={"steps": steps, "learning_rate": rate})
        config = best.model_copy(update={"adapter": optimiser, "adapter_form": form})
        for kind, base in bases.items():
            name = f"{kind}layer {layer}, {steps} steps, rate {rate:g}"
            out = given.out / name.replace(", ", "-").replace(" ", "-")
            said = figures(out, base, config, n=given.prompts, seed=given.seed)
            print(f"{name}: {said}", flush=True)


if __name__ == "__main__":
    main()
