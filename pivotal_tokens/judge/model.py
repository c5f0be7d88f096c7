"""How does a language model judge a prompt, and what if it answers about the wrong tokens?

Each vote is a question of its own, with its own order of tokens. An answer that is no answer, or
whose ids are not the ids asked, is told so and asked again, twice at most; then the vote is
unusable. Half of the votes or more unusable: `Unparsed`, from which no label follows.

    judge = ModelJudge(settings, store=store, pair=key, votes=3)
    async with judge.session() as session:
        judged = await session.ask(prompt, lists)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pivotal_tokens.errors import RequestError, WorkFailed
from pivotal_tokens.judge.answer import JudgeAnswer, ids_problem, labels_of
from pivotal_tokens.judge.examples import ExampleBank
from pivotal_tokens.judge.instructions import Instructions, load_instructions
from pivotal_tokens.judge.question import question_messages
from pivotal_tokens.judge.votes import majority
from pivotal_tokens.llm import (
    Budget,
    CallFailed,
    Filtered,
    LLMClient,
    LLMSettings,
    Message,
    Ok,
    Refused,
    Reply,
    explain,
)
from pivotal_tokens.schema import (
    JudgedPrompt,
    Judgement,
    NextTokenPair,
    NextTokens,
    Prompt,
    TokenLabel,
    Unparsed,
    Vote,
)
from pivotal_tokens.store import Store

PURPOSE = "judge"
EXAMPLES = 8
_TRIES = 3
_READ_AGAIN_S = 60.0
_SHOWN_AGAIN = 6000  # characters of an unusable answer that are sent back with its error

_Result = TypeVar("_Result")


class JudgeFailed(WorkFailed):
    """The endpoint gave no answer about a prompt; asked again, it may."""


@dataclass(frozen=True)
class ModelJudge:
    """A judge that asks a language model."""

    settings: LLMSettings
    store: Store
    pair: str
    """Whose human labels are its examples."""
    budget: Budget | None = None
    votes: int = 1
    examples: int = EXAMPLES
    """At most so many are shown; 0 for none."""
    instructions: Instructions = field(default_factory=load_instructions)

    def __post_init__(self) -> None:
        if self.votes < 1:
            raise RequestError("a judge needs at least one vote")
        LLMClient(self.settings, store=self.store, budget=self.budget)  # key and price are there

    @property
    def id(self) -> str:
        """``openai:MODEL@v1-3fa9c2d1``; several votes are another judge: ``...x3``."""
        times = f"x{self.votes}" if self.votes > 1 else ""
        return f"openai:{self.settings.model}@{self.instructions.name}{times}"

    @property
    def concurrency(self) -> int:
        """Prompts judged at the same time."""
        return max(1, -(-self.settings.max_concurrency // self.votes))

    def judge(self, prompt: Prompt, base: NextTokens, merged: NextTokens) -> Judgement | Unparsed:
        """Judge one prompt, on its own.

        Raises:
            JudgeFailed: If no answer came.
            RunEnds: If the budget is spent or the endpoint takes no call.
        """
        outcome = self.judge_prompt(prompt, NextTokenPair(base=base, merged=merged)).outcome
        assert isinstance(outcome, Judgement | Unparsed)
        return outcome

    def judge_prompt(self, prompt: Prompt, lists: NextTokenPair) -> JudgedPrompt:
        """The same, with every vote."""

        async def once() -> JudgedPrompt:
            async with self.session() as session:
                return await session.ask(prompt, lists)

        return asyncio.run(once())

    @asynccontextmanager
    async def session(self) -> AsyncIterator[JudgeSession]:
        """A connection over which many prompts are judged at once, in one event loop."""
        bank = ExampleBank.read(self.store, self.pair) if self.examples else ExampleBank()
        async with LLMClient(self.settings, store=self.store, budget=self.budget) as client:
            yield JudgeSession(self, client, bank)


@dataclass
class JudgeSession:
    """A model judge at work; every minute it looks what people labelled meanwhile."""

    judge: ModelJudge
    client: LLMClient
    bank: ExampleBank
    read_at: float = field(default_factory=time.monotonic)

    async def ask(self, prompt: Prompt, lists: NextTokenPair) -> JudgedPrompt:
        """Judge one prompt.

        Raises:
            JudgeFailed: If no answer came.
            RunEnds: If the budget is spent or the endpoint takes no call.
        """
        await self._read_again()
        asked = [self._vote(prompt, lists, number) for number in range(self.judge.votes)]
        # Every vote ends before anything is raised: a call in flight is paid for.
        ended = await asyncio.gather(*asked, return_exceptions=True)
        votes = [vote for vote in ended if isinstance(vote, Vote)]
        errors = [error for error in ended if isinstance(error, BaseException)]
        if errors:
            raise next((e for e in errors if not isinstance(e, JudgeFailed)), errors[0])
        outcome = self._decide(prompt, votes)
        return JudgedPrompt(prompt=prompt, next_tokens=lists, outcome=outcome, votes=tuple(votes))

    async def in_store(self, work: Callable[..., _Result], *arguments: Any) -> _Result:
        """Do something with the store, in turn with the ledger."""
        return await self.client.in_store(work, *arguments)

    async def _read_again(self) -> None:
        if not self.judge.examples or time.monotonic() - self.read_at < _READ_AGAIN_S:
            return
        self.read_at = time.monotonic()
        self.bank = await self.in_store(ExampleBank.read, self.judge.store, self.judge.pair)

    def _decide(self, prompt: Prompt, votes: Sequence[Vote]) -> Judgement | Unparsed:
        good = [vote for vote in votes if vote.error is None]
        if 2 * len(good) <= len(votes):
            bad = next(vote for vote in votes if vote.error is not None)
            return Unparsed(
                prompt_id=prompt.prompt_id,
                judge=self.judge.id,
                raw=bad.raw,
                error=bad.error or "",
            )
        decided = majority([vote.by_token for vote in good])
        return Judgement(
            prompt_id=prompt.prompt_id,
            judge=self.judge.id,
            labels=_listed(decided),
            summary=good[0].summary,
            reason=good[0].reason,
        )

    async def _vote(self, prompt: Prompt, lists: NextTokenPair, number: int) -> Vote:
        vote, replayed = await self._cast(prompt, lists, number, fresh=False)
        if vote.error is not None and replayed:  # an earlier run's answers, all of no use
            vote, _ = await self._cast(prompt, lists, number, fresh=True)
        return vote

    async def _cast(
        self, prompt: Prompt, lists: NextTokenPair, number: int, *, fresh: bool
    ) -> tuple[Vote, bool]:
        """One vote, and whether every reply to it was a kept one."""
        examples = self.bank.choose(prompt, self.judge.examples)
        messages = question_messages(
            self.judge.instructions, prompt, lists, vote=number, examples=examples
        )
        calls: list[str] = []
        replayed = True
        for _ in range(_TRIES):
            reply = await self.client.ask(
                messages,
                schema=JudgeAnswer,
                purpose=PURPOSE,
                subject=self.judge.id,
                salt=f"vote {number}",
                fresh=fresh,
            )
            if isinstance(reply, CallFailed):
                raise JudgeFailed(reply.error)
            calls.append(reply.call_id)
            replayed = replayed and reply.cached
            problem, raw = _problem(reply, lists), reply.raw
            if isinstance(reply, Ok) and not problem:
                break
            if isinstance(reply, Refused | Filtered):
                break
            messages = [*messages, *_told(raw, problem)]
        common: dict[str, Any] = {
            "prompt_id": prompt.prompt_id,
            "judge": self.judge.id,
            "number": number,
            "tries": len(calls),
            "call_ids": tuple(calls),
            "examples": tuple(example.prompt.prompt_id for example in examples),
        }
        if problem or not isinstance(reply, Ok):
            return Vote(**common, labels=(), error=problem, raw=raw), replayed
        labels, conflicts = labels_of(reply.value)
        vote = Vote(
            **common,
            labels=_listed(labels),
            conflicts=conflicts,
            summary=reply.value.summary,
            reason=reply.value.reason,
        )
        return vote, replayed


def _problem(reply: Reply, lists: NextTokenPair) -> str:
    """Why an answer cannot be used; "" for one that can."""
    if isinstance(reply, Ok):
        return ids_problem(reply.value, lists)
    return explain(reply)


def _told(raw: str, problem: str) -> list[Message]:
    """The turns that follow an unusable answer."""
    ask = f"That answer cannot be used: {problem}. Answer again: every id once, in each list."
    turns = [Message(role="user", content=ask)]
    return [Message(role="assistant", content=raw[:_SHOWN_AGAIN]), *turns] if raw else turns


def _listed(labels: dict[int, Any]) -> tuple[TokenLabel, ...]:
    return tuple(TokenLabel(token_id=token, label=labels[token]) for token in sorted(labels))
