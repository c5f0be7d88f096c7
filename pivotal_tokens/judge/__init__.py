"""Who labels candidate tokens before a person does."""

from pivotal_tokens.judge.instructions import Instructions, load_instructions
from pivotal_tokens.judge.lexicon import Entry, FirstToken, Lexicon
from pivotal_tokens.judge.model import JudgeFailed, ModelJudge
from pivotal_tokens.judge.persist import persist
from pivotal_tokens.judge.person import PersonJudge
from pivotal_tokens.judge.protocol import Judge, JudgeSpec, open_judge

__all__ = [
    "Entry",
    "FirstToken",
    "Instructions",
    "Judge",
    "JudgeFailed",
    "JudgeSpec",
    "Lexicon",
    "ModelJudge",
    "PersonJudge",
    "load_instructions",
    "open_judge",
    "persist",
]
