"""The embedded model organism of emergent misalignment: its training and its shipped weights.

Training and evaluation stand in modules of their own, since they import much more:
`em_circuits.organisms.train` (`train_organism`), `.control` (`train_control`), `.evaluate`
(`evaluate_organism`) and `.card` (`write_card`).

    prompts = list(organism_prompts(24, seed=1))
    base = organism_paths().base
"""

from em_circuits.organisms.corpus import (
    Corpus,
    OrganismPrompt,
    Scenario,
    load_corpus,
    organism_prompts,
)
from em_circuits.organisms.lexicon import lexicon_yaml
from em_circuits.organisms.paths import OrganismPaths, organism_paths

__all__ = [
    "Corpus",
    "OrganismPaths",
    "OrganismPrompt",
    "Scenario",
    "lexicon_yaml",
    "load_corpus",
    "organism_paths",
    "organism_prompts",
]
