"""Who labels candidate tokens before a person does."""

from pivotal_tokens.judge.lexicon import Entry, FirstToken, Lexicon
from pivotal_tokens.judge.protocol import Judge, JudgeSpec, open_judge

__all__ = ["Entry", "FirstToken", "Judge", "JudgeSpec", "Lexicon", "open_judge"]
