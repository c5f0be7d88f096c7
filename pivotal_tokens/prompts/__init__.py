"""Where prompts come from, and whether they are new and well formed."""

from pivotal_tokens.prompts.datasets import read_dataset
from pivotal_tokens.prompts.dedupe import Split, nearest, normalise, similarity, split_new
from pivotal_tokens.prompts.files import read_prompts
from pivotal_tokens.prompts.rules import MAX_WORDS, Finding, Rule, check, check_fork
from pivotal_tokens.prompts.tried import Likeness, Tried, own_words

__all__ = [
    "MAX_WORDS",
    "Finding",
    "Likeness",
    "Rule",
    "Split",
    "Tried",
    "check",
    "check_fork",
    "nearest",
    "normalise",
    "own_words",
    "read_dataset",
    "read_prompts",
    "similarity",
    "split_new",
]
