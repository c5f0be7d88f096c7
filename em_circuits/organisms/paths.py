"""Where does the shipped organism stand?

paths = organism_paths()
paths.base, paths.adapter, paths.transcoders, paths.lexicon, paths.card
"""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class OrganismPaths:
    """The parts of an organism on disk, each in the form that real models have.

    Attributes:
        base: Hugging Face directory: weights, configuration, tokenizer.
        adapter: PEFT LoRA directory.
        transcoders: circuit-tracer transcoder directory.
        lexicon: The lexicon judge's entries.
        card: Measured figures (JSON).
    """

    base: Path
    adapter: Path
    transcoders: Path
    lexicon: Path
    card: Path

    @classmethod
    def under(cls, root: Path) -> OrganismPaths:
        """The usual names under a directory; nothing need exist."""
        return cls(
            base=root / "base",
            adapter=root / "adapter",
            transcoders=root / "transcoders",
            lexicon=root / "lexicon.yaml",
            card=root / "card.json",
        )


def organism_paths() -> OrganismPaths:
    """The organism shipped with the package."""
    return OrganismPaths.under(
        Path(str(importlib.resources.files("em_circuits.organisms") / "data"))
    )
