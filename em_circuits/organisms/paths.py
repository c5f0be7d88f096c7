"""Files of an organism on disk, each in the format of real models.

Organisms of one base share its files: they differ in adapter and card.

paths = organism_paths("toy-down-proj")
paths.base, paths.adapter, paths.transcoders, paths.lexicon, paths.card
"""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass, replace
from pathlib import Path

from pivotal_tokens.errors import RequestError

TOY = "toy"
"""The organism that is meant where none is named: rank 4 on the attention of layers 0 and 1."""
TOY_DOWN_PROJ = "toy-down-proj"
"""The same base and transcoders with the form of published organisms: rank 1 on one `down_proj`."""
ORGANISMS = (TOY, TOY_DOWN_PROJ)
"""Those shipped with the package."""


@dataclass(frozen=True)
class OrganismPaths:
    """Paths of an organism's parts.

    Attributes:
        base: Hugging Face directory: weights, configuration, tokenizer.
        adapter: PEFT LoRA directory.
        transcoders: circuit-tracer transcoder directory.
        scenarios: Source of its corpus.
        lexicon: The lexicon judge's entries.
        card: Measured figures (JSON).
    """

    base: Path
    adapter: Path
    transcoders: Path
    scenarios: Path
    lexicon: Path
    card: Path

    @classmethod
    def under(cls, root: Path) -> OrganismPaths:
        """The usual names under a directory; nothing need exist."""
        return cls(
            base=root / "base",
            adapter=root / "adapter",
            transcoders=root / "transcoders",
            scenarios=root / "scenarios.yaml",
            lexicon=root / "lexicon.yaml",
            card=root / "card.json",
        )


def organism_paths(name: str = TOY) -> OrganismPaths:
    """An organism shipped with the package.

    Raises:
        RequestError: If there is none of this name.
    """
    if name not in ORGANISMS:
        raise RequestError(f"no organism {name!r}; there are {', '.join(ORGANISMS)}")
    data = Path(str(importlib.resources.files("em_circuits.organisms") / "data"))
    toy = OrganismPaths.under(data)
    if name == TOY:
        return toy
    own = OrganismPaths.under(data / name)
    return replace(toy, adapter=own.adapter, card=own.card)
