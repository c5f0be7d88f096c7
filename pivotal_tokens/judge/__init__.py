"""Judges, which label candidate tokens before a person does."""

from pivotal_tokens.judge.lexicon import Entry, FirstToken, Lexicon
from pivotal_tokens.judge.model import ModelJudge
from pivotal_tokens.judge.persist import persist
from pivotal_tokens.judge.protocol import Judge, JudgeSpec, PersonJudge, open_judge

__all__ = [
    "Entry",
    "FirstToken",
    "Judge",
    "JudgeSpec",
    "Lexicon",
    "ModelJudge",
    "PersonJudge",
    "open_judge",
    "persist",
]
