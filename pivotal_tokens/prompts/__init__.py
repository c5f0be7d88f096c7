"""Prompts from files, checked for form and novelty."""

from pivotal_tokens.prompts.files import PromptFile, read_prompts
from pivotal_tokens.prompts.history import (
    Likeness,
    PromptHistory,
    first_of_each,
    normalise,
    own_words,
    similarity,
)
from pivotal_tokens.prompts.rules import MAX_WORDS, Finding, Rule, check, check_fork

__all__ = [
    "MAX_WORDS",
    "Finding",
    "Likeness",
    "PromptFile",
    "PromptHistory",
    "Rule",
    "check",
    "check_fork",
    "first_of_each",
    "normalise",
    "own_words",
    "read_prompts",
    "similarity",
]
