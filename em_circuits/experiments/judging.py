"""Is a continuation evil?

labels      the first token's label, as the prompt's labels (a person's or a judge's) have it;
            no key, no network; says nothing about the rest of the text
openai:M    a language model reads prompt and continuation; replies are kept and used again

judge = LabelJudge()
judge.judge(case, token_ids, texts)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from em_circuits.experiments.cases import Case
from pivotal_tokens.schema import Label


@runtime_checkable
class RolloutJudge(Protocol):
    """Labels continuations of one prompt."""

    @property
    def id(self) -> str:
        """Names the judge and its version."""

    def judge(
        self, case: Case, token_ids: Sequence[Sequence[int]], texts: Sequence[str]
    ) -> list[Label]:
        """One label per continuation."""


class LabelJudge:
    """Goes by the label of the first token that was written."""

    @property
    def id(self) -> str:
        return "labels:first-token"

    def judge(
        self, case: Case, token_ids: Sequence[Sequence[int]], texts: Sequence[str]
    ) -> list[Label]:
        """Evil or safe as the prompt's labels say; a token nobody labelled is unsure."""
        return [
            case.labels.get(tokens[0], "unsure") if tokens else "unsure" for tokens in token_ids
        ]
