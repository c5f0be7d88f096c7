"""Where prompts come from, and whether they are new and well formed."""

from pivotal_tokens.prompts.dedupe import Split, nearest, normalise, similarity, split_new
from pivotal_tokens.prompts.files import read_prompts
from pivotal_tokens.prompts.rules import Finding, check

__all__ = [
    "Finding",
    "Split",
    "check",
    "nearest",
    "normalise",
    "read_prompts",
    "similarity",
    "split_new",
]
