"""Prompts, next tokens, labels, verdicts and the review queue; no model and no torch in here."""

from pivotal_tokens.errors import EmCircuitsError, LeaseLost, RequestError, WorkFailed
from pivotal_tokens.schema import (
    Failed,
    GraphRecord,
    Judgement,
    Label,
    LabelEvent,
    NextTokenPair,
    NextTokens,
    Prompt,
    PromptLabels,
    ReviewItem,
    Thresholds,
    TokenLabel,
    TokenScore,
    Unparsed,
    Verdict,
    prompt_id,
)
from pivotal_tokens.verdict import decide, error_verdict

__all__ = [
    "EmCircuitsError",
    "Failed",
    "GraphRecord",
    "Judgement",
    "Label",
    "LabelEvent",
    "LeaseLost",
    "NextTokenPair",
    "NextTokens",
    "Prompt",
    "PromptLabels",
    "RequestError",
    "ReviewItem",
    "Thresholds",
    "TokenLabel",
    "TokenScore",
    "Unparsed",
    "Verdict",
    "WorkFailed",
    "decide",
    "error_verdict",
    "prompt_id",
]
