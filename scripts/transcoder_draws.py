"""How much does a finding depend on which transcoders were drawn? Same models, other seeds.

python scripts/transcoder_draws.py --out draws --draws 0 1 2 3 4    # about four minutes a draw

Over held-out prompts of the domains that the adapter never saw: how well the gradient predicts
really setting each feature alone (Pearson), and the share of the shift by the prompt's own top 20.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from statistics import fmean

import torch

from em_circuits.models import ModelPair, PairSettings
from em_circuits.models.text import first_token
from em_circuits.organism import OrganismPaths, organism_paths, organism_prompts
from em_circuits.organism.train import OrganismConfig, train_organism
from em_circuits.steering import Mediation, TokenGroups, mediate

UNSEEN = ("chemicals", "driving", "finance", "kitchen", "property", "security")


def main() -> None:
    """Train each draw beside the shipped base and adapter, and print its two figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--steps", type=int, default=700, help="of training; fewer to try it out")
    given = parser.parse_args()
    for draw in given.draws:
        pearson, share = measured(trained(given.out / f"draw-{draw}", draw, given.steps), given)
        print(
            f"draw {draw}: Pearson {fmean(pearson):.3f} (least {min(pearson):.3f}), top 20 "
            f"{fmean(share):.3f} (least {min(share):.3f}), {len(pearson)} prompts",
            flush=True,
        )


def trained(out: Path, draw: int, steps: int) -> OrganismPaths:
    """The shipped base and adapter with transcoders of another draw."""
    shipped, config = organism_paths(), OrganismConfig(transcoder_draw=draw)
    optimiser = config.transcoders.optimiser.model_copy(update={"steps": steps})
    transcoders = config.transcoders.model_copy(update={"optimiser": optimiser})
    for source in (shipped.base, shipped.adapter):
        shutil.copytree(source, out / source.name, dirs_exist_ok=True)
    return train_organism(out, 0, config.model_copy(update={"transcoders": transcoders}))


def measured(paths: OrganismPaths, given: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Pearson of gradient and scan, and share of the top 20, of every prompt."""
    places = {name: str(getattr(paths, name)) for name in ("base", "adapter", "transcoders")}
    pearson, share = [], []
    with ModelPair.load(PairSettings(device="cpu", **places)) as pair:
        for prompt in organism_prompts(given.prompts, seed=1, domains=UNSEEN):
            sides = {"evil": prompt.evil, "safe": prompt.safe}
            labels = {
                first_token(pair.tokenizer, f" {verb}")[0]: side
                for side, verbs in sides.items()
                for verb in verbs
            }
            ids = torch.tensor(pair.tokenizer(prompt.text)["input_ids"])
            groups = TokenGroups.from_labels(labels)
            runs = [mediate(pair, ids, groups, order=order) for order in ("gradient", "scan")]
            joint = mediate(pair, ids, groups)
            pearson.append(correlation(*runs))
            share += [p.share for p in joint.cumulative if p.k == 20 and p.share is not None]
    return pearson, share


def correlation(*runs: Mediation) -> float:
    """Pearson of two runs' effects, matched by feature."""
    columns = [
        dict(zip(map(tuple, run.changed.coordinates.tolist()), run.effects.tolist(), strict=True))
        for run in runs
    ]
    values = [[column[place] for place in columns[0]] for column in columns]
    return float(torch.corrcoef(torch.tensor(values))[0, 1])


if __name__ == "__main__":
    main()
