"""Who labels candidate tokens before a person does."""

from pivotal_tokens.judge.instructions import Instructions, load_instructions
from pivotal_tokens.judge.keeping import Answered, Kept, keep_answers
from pivotal_tokens.judge.lane import Lane
from pivotal_tokens.judge.lexicon import Entry, FirstToken, Lexicon
from pivotal_tokens.judge.model import JudgeFailed, ModelJudge
from pivotal_tokens.judge.person import PersonJudge
from pivotal_tokens.judge.protocol import Judge, JudgeSpec, open_judge

__all__ = [
    "Answered",
    "Entry",
    "FirstToken",
    "Instructions",
    "Judge",
    "JudgeFailed",
    "JudgeSpec",
    "Kept",
    "Lane",
    "Lexicon",
    "ModelJudge",
    "PersonJudge",
    "keep_answers",
    "load_instructions",
    "open_judge",
]
