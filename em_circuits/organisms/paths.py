"""Files of an organism on disk, each in the format of real models.

paths = organism_paths("toy")
paths.base, paths.adapter, paths.transcoders, paths.lexicon, paths.card
"""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass
from pathlib import Path

from pivotal_tokens.errors import RequestError

TOY = "toy"
"""The organism that is meant where none is named."""
_FOLDERS = {TOY: "data"}
"""Of the organisms shipped with the package."""


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
    if name not in _FOLDERS:
        raise RequestError(f"no organism {name!r}; there are {', '.join(_FOLDERS)}")
    package = importlib.resources.files("em_circuits.organisms")
    return OrganismPaths.under(Path(str(package / _FOLDERS[name])))
