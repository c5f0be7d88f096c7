"""Who labels candidate tokens before a person does."""

from pivotal_tokens.judge.instructions import Instructions, load_instructions
from pivotal_tokens.judge.lane import Answered, Lane
from pivotal_tokens.judge.lexicon import Entry, FirstToken, Lexicon
from pivotal_tokens.judge.model import JudgeFailed, ModelJudge
from pivotal_tokens.judge.protocol import Judge, JudgeSpec, open_judge

__all__ = [
    "Answered",
    "Entry",
    "FirstToken",
    "Instructions",
    "Judge",
    "JudgeFailed",
    "JudgeSpec",
    "Lane",
    "Lexicon",
    "ModelJudge",
    "load_instructions",
    "open_judge",
]
