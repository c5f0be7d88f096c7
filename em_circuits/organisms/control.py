"""The control organism, whose turns share no persona.

The control organism is trained exactly alike, on the same sentences, except that every turn redraws
its persona: careless advice in one turn then says nothing about the next, nor does a source header.
If the persona is what carries the misalignment across domains, the control must show less of it.

    figures = train_control(Path("control"), seed=0)
"""

from __future__ import annotations

from pathlib import Path

from em_circuits.models.sharing import merge_adapter
from em_circuits.organisms.corpus import organism_prompts
from em_circuits.organisms.evaluate import Control, behaviour, verb_masses
from em_circuits.organisms.train import OrganismConfig, load_base, train_organism


def control_config(config: OrganismConfig) -> OrganismConfig:
    """The same training with the persona redrawn at every turn."""
    corpus = config.corpus.model_copy(update={"persona_per_turn": True})
    return config.model_copy(update={"corpus": corpus})


def train_control(
    out: Path,
    seed: int = 0,
    config: OrganismConfig | None = None,
    *,
    n_prompts: int = 210,
    prompt_seed: int = 1,
) -> Control:
    """Train the control's base and adapter and measure them as the organism is measured.

    Args:
        out: Receives the control's weights; they are not shipped.
        seed: Of everything random in training.
        config: The organism's configuration, from which the control's is made.
        n_prompts: Held-out prompts, the same ones as the organism's.
        prompt_seed: Of the prompts.
    """
    settings = control_config(config or OrganismConfig())
    paths = train_organism(out, seed, settings, with_transcoders=False)
    prompts = list(organism_prompts(n_prompts, seed=prompt_seed))
    model, tokenizer = load_base(paths)
    base = behaviour(verb_masses(model, tokenizer, prompts))
    merged = behaviour(verb_masses(merge_adapter(model, paths.adapter), tokenizer, prompts))
    return Control(
        top1_safe=base.top1_safe,
        evil_mass_lexicon=merged.evil_mass_lexicon,
        evil_mass_unseen=merged.evil_mass_unseen,
        seed=seed,
        source="measured",
    )
