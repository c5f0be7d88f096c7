"""Judges of continuations: whether harm follows a token.

The same judges serve `label --rollouts` and `steer sweep --rollout-judge`, so that their rates can
be compared. A continuation that a judge could not label is *unscored*: it counts in no rate.

    labels = judge.label(prompt, [Continuation(token=" eat", text=", nobody will care.")])
    labels[0].label                                            # "evil"; None: unscored
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from pivotal_tokens.errors import RequestError
from pivotal_tokens.judge.lexicon import Lexicon
from pivotal_tokens.judge.model import ModelJudge
from pivotal_tokens.judge.protocol import Judge
from pivotal_tokens.llm import Grader, LLMClient, Message, load_instructions
from pivotal_tokens.llm.grade import every, one_line_json
from pivotal_tokens.llm.instructions import Instructions
from pivotal_tokens.schema import (
    Continuation,
    ContinuationLabel,
    FilteredContinuation,
    Label,
    Prompt,
)

_A_QUESTION = 32
"""Continuations in one question: labels of many more do not fit into a reply of 2,000 tokens."""


@runtime_checkable
class ContinuationJudge(Protocol):
    """Labels continuations of one prompt."""

    @property
    def id(self) -> str:
        """Names the judge and its version."""

    def label(
        self, prompt: Prompt, continuations: Sequence[Continuation]
    ) -> list[ContinuationLabel]:
        """One label for each.

        Raises:
            WorkFailed: If they got none and may get some later.
        """


class LabelJudge:
    """By the label of the candidate token alone: no key, no network, no word of what follows."""

    @property
    def id(self) -> str:
        return "labels:first-token"

    def label(
        self, prompt: Prompt, continuations: Sequence[Continuation]
    ) -> list[ContinuationLabel]:
        return [ContinuationLabel(c.candidate, "its first token's label") for c in continuations]


class _One(BaseModel):
    model_config = ConfigDict(extra="ignore")

    number: int
    label: Label
    reason: str


class ContinuationLabels(BaseModel):
    """A model's answer: a label for every number."""

    labels: list[_One]


@dataclass(frozen=True)
class ModelContinuations(Grader):
    """By a language model, a few dozen continuations of a prompt in one question."""

    instructions: Instructions = field(
        default_factory=partial(load_instructions, folder="prompts/continuations")
    )
    known: dict[tuple[str, Continuation], ContinuationLabel] = field(
        default_factory=dict, repr=False, compare=False
    )
    """By prompt id: repeated continuations are asked about once."""

    purpose: ClassVar[str] = "rollout"
    kind: ClassVar[str] = "rollouts-"

    def label(
        self, prompt: Prompt, continuations: Sequence[Continuation]
    ) -> list[ContinuationLabel]:
        """Ask; numbers missing, doubled or unknown are asked about again, then unscored."""
        keys = {c: (prompt.prompt_id, c) for c in continuations}
        found = {c: self.known[key] for c, key in keys.items() if key in self.known}
        if new := [c for c in keys if c not in found]:
            labels = self.run(lambda client: self._ask(client, prompt, new, _A_QUESTION))
            found |= zip(new, labels, strict=True)
        self.known.update({keys[c]: label for c, label in found.items() if label.label})
        return [found[c] for c in continuations]

    async def _ask(
        self, client: LLMClient, prompt: Prompt, continuations: Sequence[Continuation], size: int
    ) -> list[ContinuationLabel]:
        """Labels of continuations, so many in a question."""
        starts = range(0, len(continuations), size)
        parts = [continuations[start : start + size] for start in starts]
        answers = await every(self._ask_part(client, prompt, part) for part in parts)
        return [label for labels in answers for label in labels]

    async def _ask_part(
        self, client: LLMClient, prompt: Prompt, continuations: Sequence[Continuation]
    ) -> list[ContinuationLabel]:
        # The message is one JSON value and nothing else: no text in it can end it.
        data = {
            "prompt": prompt.text,
            "continuations": [
                {"number": number, "next_word": c.token, "goes_on": c.text}
                for number, c in enumerate(continuations)
            ],
        }
        messages = [
            Message(role="system", content=self.instructions.text),
            Message(role="user", content=one_line_json(data)),
        ]
        numbers = list(range(len(continuations)))

        def problem(answer: ContinuationLabels) -> str:
            given = sorted(one.number for one in answer.labels)
            return "" if given == numbers else "its numbers are not those asked"

        grade = await self.grade(
            client, messages, ContinuationLabels, check=problem, remind="every number once"
        )
        if grade.declined and len(continuations) > 1:  # perhaps because of one of them
            return await self._ask(client, prompt, continuations, size=1)
        if grade.value is None:
            unscored = FilteredContinuation if grade.filtered else ContinuationLabel
            return [unscored(None, grade.problem)] * len(continuations)
        answers = sorted(grade.value.labels, key=lambda one: one.number)
        return [ContinuationLabel(one.label, one.reason) for one in answers]


def continuation_judge(judge: Judge) -> ContinuationJudge:
    """Who labels continuations where this judge labels tokens.

    Raises:
        RequestError: If it is of a kind that cannot.
    """
    if isinstance(judge, Lexicon):
        return judge
    if isinstance(judge, ModelJudge):
        return ModelContinuations(judge.settings, judge.store, judge.budget)
    raise RequestError(f"judge {judge.id} labels no continuations; use a lexicon or openai:MODEL")
