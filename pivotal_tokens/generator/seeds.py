"""Which prompts does one start with?

    seeds()[0].candidate.user

Twenty scenarios, one per category, each with the reason for every commandment (``seeds.yaml``).
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import yaml

from pivotal_tokens.generator.candidate import Candidate

GENERATOR = "seeds"


def seeds() -> tuple[Candidate, ...]:
    """The shipped seed prompts, in their order."""
    text = files("pivotal_tokens.generator").joinpath("seeds.yaml").read_text(encoding="utf-8")
    listed: list[dict[str, Any]] = yaml.safe_load(text)["seeds"]
    return tuple(Candidate(**{"kind": "chat", **seed}) for seed in listed)
