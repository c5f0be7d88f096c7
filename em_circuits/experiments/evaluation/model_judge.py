"""How does a language model score answers to open questions?

One question per answer: the instructions (`prompts/v1.md`, hashed into the judge's id), then
question and answer as one line of JSON between marks that nothing within can know. Replies stand in
the store under their content, so the same answer is never paid for twice.

    ModelAnswers(settings, store=store, budget=budget).score(asked, keep)
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import Field

from em_circuits.experiments.evaluation.judging import Asked, Keep, Score
from pivotal_tokens.errors import WorkFailed
from pivotal_tokens.judge.instructions import Instructions, load_instructions
from pivotal_tokens.judge.question import fenced
from pivotal_tokens.llm import (
    Budget,
    CallFailed,
    Filtered,
    LLMClient,
    LLMSettings,
    Message,
    Ok,
    Refused,
    explain,
)
from pivotal_tokens.schema import Frozen
from pivotal_tokens.store import Store

PACKAGE = "em_circuits.experiments.evaluation"
_TRIES = 3


class Graded(Frozen):
    """The form in which a judge answers."""

    alignment: int = Field(ge=0, le=100)
    coherence: int = Field(ge=0, le=100)
    declined: bool
    reason: str


class NoScore(WorkFailed):
    """The endpoint gave no reply about an answer; asked again, it may."""


@dataclass(frozen=True)
class ModelAnswers:
    """A judge that asks a language model."""

    settings: LLMSettings
    store: Store
    budget: Budget | None = None
    instructions: Instructions = field(default_factory=lambda: load_instructions(package=PACKAGE))

    def __post_init__(self) -> None:
        LLMClient(self.settings, store=self.store, budget=self.budget)  # key and price are there

    @property
    def id(self) -> str:
        """``openai:MODEL@answers-v1-3fa9c2d1``."""
        return f"openai:{self.settings.model}@answers-{self.instructions.name}"

    @property
    def what(self) -> str:
        return f"the language model {self.settings.model}, which reads question and answer"

    def score(self, asked: Sequence[Asked], keep: Keep) -> None:
        """Score every answer, many at a time; each is kept as soon as it is known.

        Raises:
            WorkFailed: If some got no reply; the others are kept.
            RunEnds: If the budget is spent or the endpoint takes no call.
        """
        if asked:
            asyncio.run(self._score(asked, keep))

    async def _score(self, asked: Sequence[Asked], keep: Keep) -> None:
        async with LLMClient(self.settings, store=self.store, budget=self.budget) as client:

            async def one(number: int) -> None:
                keep(number, await self._one(client, asked[number]))

            # Every call ends before anything is raised: what is in flight is paid for.
            work = [one(number) for number in range(len(asked))]
            ended = await asyncio.gather(*work, return_exceptions=True)
        errors = [error for error in ended if isinstance(error, BaseException)]
        for error in errors:
            if not isinstance(error, NoScore):
                raise error
        if errors:
            raise WorkFailed(
                f"{len(errors)} of {len(asked)} answers have no score yet ({errors[0]}); "
                "run the same command again"
            )

    async def _one(self, client: LLMClient, asked: Asked) -> Score:
        data = {"question": asked.question, "answer": asked.answer}
        messages = [
            Message(role="system", content=self.instructions.text),
            Message(role="user", content=f"{fenced(data)}\nGrade this answer."),
        ]
        calls: list[str] = []
        problem = raw = ""
        for attempt in range(_TRIES):
            reply = await client.ask(
                messages, schema=Graded, purpose="evaluate", subject=self.id, salt=str(attempt)
            )
            if isinstance(reply, CallFailed):
                raise NoScore(reply.error)
            calls.append(reply.call_id)
            problem, raw = explain(reply), reply.raw
            if isinstance(reply, Ok):
                graded: Graded = reply.value
                return Score(
                    outcome="declined" if graded.declined else "scored",
                    alignment=float(graded.alignment),
                    coherence=float(graded.coherence),
                    reason=graded.reason,
                    raw=raw,
                    call_ids=tuple(calls),
                )
            if isinstance(reply, Refused | Filtered):
                break
        return Score(outcome="unusable", reason=problem, raw=raw, call_ids=tuple(calls))
