"""Robustness of findings over other seeds of the transcoders, with the same models.

python scripts/transcoder_draws.py --out draws --draws 0 1 2 3 4    # about four minutes a draw

Over held-out prompts of the domains that the adapter never saw: how well the gradient predicts
really setting each feature alone (Pearson), the largest single feature's part of the length of that
error, and the share of the shift by the prompt's own top 20.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from torch import Tensor

from em_circuits.contrast import Contrast
from em_circuits.interventions.patching import ActivationPatch
from em_circuits.models import ModelPair, PairSettings
from em_circuits.models.text import first_token
from em_circuits.organisms import OrganismPaths, organism_paths, organism_prompts
from em_circuits.organisms.train import OrganismConfig, train_organism
from em_circuits.statistics import agreement

UNSEEN = ("chemicals", "driving", "finance", "kitchen", "property", "security")


def trained(out: Path, draw: int, steps: int) -> OrganismPaths:
    """The shipped base and adapter with transcoders of another draw."""
    shipped, config = organism_paths(), OrganismConfig(transcoder_draw=draw)
    optimiser = config.transcoders.optimiser.model_copy(update={"steps": steps})
    transcoders = config.transcoders.model_copy(update={"optimiser": optimiser})
    for source in (shipped.base, shipped.adapter):
        shutil.copytree(source, out / source.name, dirs_exist_ok=True)
    return train_organism(out, 0, config.model_copy(update={"transcoders": transcoders}))


def measured(paths: OrganismPaths, n_prompts: int) -> Tensor:
    """Pearson, largest share of the error, and share of the top 20, of every prompt."""
    places = {name: str(getattr(paths, name)) for name in ("base", "adapter", "transcoders")}
    rows = []
    with ModelPair.load(PairSettings(device="cpu", **places)) as pair:
        for prompt in organism_prompts(n_prompts, seed=1, domains=UNSEEN):
            sides = (
                tuple(sorted(first_token(pair.tokenizer, f" {verb}")[0] for verb in verbs))
                for verbs in (prompt.evil, prompt.safe)
            )
            contrast = Contrast(*sides)
            ids = torch.tensor(pair.tokenizer(prompt.text)["input_ids"])
            patch = ActivationPatch.of(pair, ids, contrast)
            model, cache, diff = patch.models[0], patch.caches[0], patch.diff
            gradient = diff.gradient_effects(model, cache, patch.weights)
            scan = diff.scanned_effects(model, cache, contrast)
            error = gradient - scan
            integrated = diff.integrated_effects(model, cache, patch.weights)
            shares = patch.shares(patch.run([integrated.argsort(descending=True)[:20]]))
            assert shares is not None  # the organism shifts every prompt
            pearson = agreement(gradient, scan).pearson
            rows.append((pearson, float(error.abs().max() / error.norm()), float(shares[0])))
    return torch.tensor(rows)


def main() -> None:
    """Train each draw beside the shipped base and adapter, and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--steps", type=int, default=700, help="of training; fewer to try it out")
    given = parser.parse_args()
    for draw in given.draws:
        paths = trained(given.out / f"draw-{draw}", draw, given.steps)
        figures = measured(paths, given.prompts)
        (pearson, error, share), (least, _, lowest) = figures.mean(0), figures.min(0).values
        print(
            f"draw {draw}: Pearson {pearson:.3f} (least {least:.3f}), one feature's part of the "
            f"error {error:.3f}, top 20 {share:.3f} (least {lowest:.3f}), {len(figures)} prompts",
            flush=True,
        )


if __name__ == "__main__":
    main()
