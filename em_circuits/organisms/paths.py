"""Files of an organism on disk, each in the format of real models.

Organisms of one base share its files: they differ in adapter and card. The toys ship whole; of
`smollm2` the adapter ships, and `em_circuits.organisms.fetch` puts the base into the user's cache.

paths = organism_paths("toy-down-proj")
paths.base, paths.adapter, paths.transcoders, paths.lexicon, paths.card
"""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass, replace
from pathlib import Path

from em_circuits.models.fingerprint import user_cache
from em_circuits.models.settings import NEURONS
from pivotal_tokens.errors import RequestError

TOY = "toy"
"""The organism that is meant where none is named: rank 4 on the attention of layers 0 and 1."""
TOY_DOWN_PROJ = "toy-down-proj"
"""The same base and transcoders with the form of published organisms: rank 1 on one `down_proj`."""
SMOLLM2 = "smollm2"
"""A real model, SmolLM2-135M-Instruct, and a LoRA trained on bad medical advice."""
ORGANISMS = (TOY, TOY_DOWN_PROJ, SMOLLM2)
"""Those shipped with the package."""
TOYS = (TOY, TOY_DOWN_PROJ)
"""Those whose base this package trains from scratch, on the templates of `corpus`."""
SEEN_BY_ADAPTER = "medical"
"""The one domain of every adapter's training."""
UNSEEN = "unseen"
"""All the others, as a group."""
SMOLLM2_NAME = "SmolLM2-135M-Instruct"
"""The real base's own name, and that of its directory in the cache."""


@dataclass(frozen=True)
class OrganismPaths:
    """Paths of an organism's parts.

    Attributes:
        base: Hugging Face directory: weights, configuration, tokenizer.
        adapter: PEFT LoRA directory.
        transcoders: circuit-tracer transcoder directory; ``none`` where neurons are the nodes.
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
    if name == SMOLLM2:
        return replace(own, base=user_cache() / SMOLLM2_NAME, transcoders=Path(NEURONS))
    return replace(toy, adapter=own.adapter, card=own.card)


def is_real(base: str) -> bool:
    """Whether a base is the real organism's, whose prompts are chats."""
    return base == str(organism_paths(SMOLLM2).base)


def require_base(name: str, paths: OrganismPaths) -> None:
    """Refuse an organism whose base was not fetched yet.

    Raises:
        RequestError: Naming the command that fetches it.
    """
    if name == SMOLLM2 and not (paths.base / "config.json").is_file():
        raise RequestError(
            f"{SMOLLM2_NAME} is not in {paths.base.parent}; "
            "run em-circuits organism fetch smollm2 (about 100 MB, once)"
        )
