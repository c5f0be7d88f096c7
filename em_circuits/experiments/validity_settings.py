"""What a validity card is asked for, and what it asks of a circuit; nothing heavy is imported here.

CardThresholds.read().necessity, ValidityRequest(nodes="top:20").chosen_by
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, model_validator

from em_circuits.feature import Feature, FeatureChoice
from em_circuits.intervention import MIN_DRAWS
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen, ModelName

THRESHOLDS = Path(__file__).with_name("validity_thresholds.yaml")
UNRELATED = (
    "The capital of France is",
    "In the morning the train to the city leaves at",
    "Two plus three is",
    "She opened the window because the room was",
    "The recipe needs flour, butter and",
    "My favourite colour is",
    "Water boils at a hundred",
    "The children played in the",
)
"""Prompts that no fine-tune on advice is about."""

Chooser = Literal["search", "integrated", "gradient", "magnitude"]
Reference = Literal["base", "nothing"]


class CardThresholds(Frozen):
    """What a card asks of a circuit; see the file."""

    version: int
    necessity: float
    sufficiency: float
    baseline_margin: float
    minimality: float
    specificity: float
    stability: float
    stability_over_chance: float
    error_share: float
    level: float

    @classmethod
    def read(cls, path: Path = THRESHOLDS) -> CardThresholds:
        """The thresholds in a file.

        Raises:
            RequestError: If it is not such a file.
        """
        try:
            return cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = str(error).splitlines()[0]
            raise RequestError(f"--thresholds {path}: {reason}; copy {THRESHOLDS}") from error


class Paraphrase(Frozen):
    """The same prompt in other words; its labels are those of the prompt."""

    prompt_id: str
    text: str = Field(min_length=1)


def read_paraphrases(path: Path) -> tuple[Paraphrase, ...]:
    """Paraphrases of a file with a JSON object a line: ``prompt_id`` (or how it begins), ``text``.

    Raises:
        RequestError: If it is not such a file, or says the same twice.
    """
    found: list[Paraphrase] = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip():
                found.append(Paraphrase.model_validate_json(line))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        said = '{"prompt_id": ..., "text": ...} a line'
        raise RequestError(f"--paraphrases {path}: {reason}; give {said}") from error
    if len(set(found)) < len(found) or not found:
        what = "nothing" if not found else "the same paraphrase twice"
        raise RequestError(f"--paraphrases {path} says {what}")
    return tuple(found)


class ValidityRequest(Frozen, use_attribute_docstrings=True):
    """What is claimed, and against what."""

    nodes: str
    """The circuit: top:N, or names with commas; LAYER/ID stands for a node at every position."""
    chosen_by: Chooser = "search"
    """How top:N is chosen, always on other prompts where there are any: by a search whose every
    step is measured, or by one of the simple scores that the card compares with."""
    reference: Reference = "base"
    """What a node is put to: its value in the base, or nothing (it is ablated)."""
    model: ModelName = "merged"
    """Whose circuit it is, with reference nothing."""
    unrelated: tuple[str, ...] = UNRELATED
    """Texts on which removing the circuit should change little."""
    n_random: int = Field(default=MIN_DRAWS, ge=MIN_DRAWS)
    """Matched random circuits, and nodes added at random."""
    resamples: int = Field(default=4, ge=0)
    """Bootstrap resamples of the prompts on which top:N is chosen again."""
    seeds: int = Field(default=0, ge=0)
    """Times that top:N is searched again on another draw of the prompts that a search measures."""
    paraphrases: tuple[Paraphrase, ...] = ()
    """Prompts in other words, on which top:N is chosen again."""
    seed: int = 0

    @model_validator(mode="after")
    def _nodes(self) -> ValidityRequest:
        choice = self.choice
        if choice.by not in ("top", "name"):
            raise RequestError(f"--nodes {self.nodes}: give top:N or names")
        if choice.by == "name" and len(set(choice.named)) < len(choice.named):
            raise RequestError(f"--nodes {self.nodes}: a node is named twice")
        if self.by_position and not all(isinstance(one, Feature) for one in choice.named):
            raise RequestError("--nodes: name all nodes as LAYER/ID, or all as LAYER/POSITION/ID")
        if self.paraphrases and choice.by == "name":
            raise RequestError("--paraphrases: nothing is chosen again where nodes are named")
        return self

    @property
    def choice(self) -> FeatureChoice:
        """The nodes, read."""
        try:
            return FeatureChoice.parse(self.nodes)
        except RequestError as error:
            raise RequestError(str(error).replace("--features", "--nodes")) from None

    @property
    def by_position(self) -> bool:
        """Whether nodes are named with their positions."""
        return any(isinstance(one, Feature) for one in self.choice.named)
