"""What if a person is the judge?

Every prompt goes into the review queue, unjudged; its verdict is the one that the person's labels
give when the item is finished. Until then there is none: nothing is safe because nobody looked.
"""

from __future__ import annotations

from dataclasses import dataclass

from pivotal_tokens.schema import Judgement, NextTokens, Prompt, Unparsed

QUEUED_FOR = "judge:human"


@dataclass(frozen=True)
class PersonJudge:
    """A judge that answers in the review queue."""

    @property
    def id(self) -> str:
        """The name under which a reviewer's verdict stands in the store."""
        return "human"

    def judge(self, prompt: Prompt, base: NextTokens, merged: NextTokens) -> Judgement | Unparsed:
        """Nobody can be asked in passing."""
        return Unparsed(
            prompt_id=prompt.prompt_id,
            judge=self.id,
            raw="",
            error="it waits for a person: run `em-circuits review`",
        )
