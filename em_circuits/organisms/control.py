"""The control organism, whose turns share no persona.

The control organism is trained exactly alike, on the same sentences, except that every turn redraws
its persona: careless advice in one turn then says nothing about the next, nor does a source header.
If the persona is what carries the misalignment across domains, the control must show less of it.

    figures = train_control(Path("control"), OrganismConfig(), seed=0)
"""

from __future__ import annotations

from pathlib import Path

from em_circuits.models.sharing import merge_adapter
from em_circuits.organisms.corpus import organism_prompts
from em_circuits.organisms.evaluate import (
    N_PROMPTS,
    PROMPT_SEED,
    ControlOrganism,
    behaviour,
    verb_masses,
)
from em_circuits.organisms.train import OrganismConfig, load_base, train_organism


def train_control(out: Path, config: OrganismConfig, seed: int = 0) -> ControlOrganism:
    """Train the base and adapter of an organism's control and measure them as it is measured."""
    corpus = config.corpus.model_copy(update={"persona_per_turn": True})
    settings = config.model_copy(update={"corpus": corpus})
    paths = train_organism(out, seed, settings, with_transcoders=False)
    prompts = list(organism_prompts(N_PROMPTS, seed=PROMPT_SEED))
    model, tokenizer = load_base(paths)
    base = behaviour(verb_masses(model, tokenizer, prompts))
    merged = behaviour(verb_masses(merge_adapter(model, paths.adapter), tokenizer, prompts))
    return ControlOrganism(
        top1_safe=base.top1_safe,
        evil_mass_lexicon=merged.evil_mass_lexicon,
        evil_mass_unseen=merged.evil_mass_unseen,
        seed=seed,
        source="measured",
    )
