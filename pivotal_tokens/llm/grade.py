"""Graders: language models that answer by a schema, retried until the answer is usable.

    instructions, data -> reply -> schema -> check -> Grade
                            ^ what is wrong with it, at most twice

The one engine under the judges of tokens, of continuations and of answers. An answer that is not in
the form, or that the caller's check turns down (other ids than those asked, say), is sent back with
what is wrong; a model that declines is not pressed. A reply that was cut off at the limit of output
tokens is asked for once more where there is more room, else not at all. Replies of no use that were
kept by an earlier run do not stand in for asking: where all were such, the question is asked anew.
What no reply settles is *unusable* and counts as nothing, least of all as "unsure".

    grader = ModelAnswers(settings, store, budget)
    async with grader.client() as client:
        grade = await grader.grade(client, messages, Answer, check=problem_with)
    grade.value, grade.problem             # None and why, where no reply could be used
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import unicodedata
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, Self, TypeVar

from pydantic import BaseModel

from pivotal_tokens.errors import WorkFailed
from pivotal_tokens.llm.capabilities import Capabilities
from pivotal_tokens.llm.client import LLMClient
from pivotal_tokens.llm.instructions import Instructions, load_instructions
from pivotal_tokens.llm.replies import CallFailed, Filtered, Ok, Refused, Truncated, why_unusable
from pivotal_tokens.llm.settings import Budget, LLMSettings, Message
from pivotal_tokens.store import Store

TRIES = 3
_SHOWN_AGAIN = 6000  # characters of an unusable answer that are sent back with its problem
_SHOWN_PROBLEM = 500
_SMALL, _SMALL_LIMIT = (Message(role="user", content="Answer with the word yes."),), 16

Answer = TypeVar("Answer", bound=BaseModel)
Result = TypeVar("Result")


class NoReply(WorkFailed):
    """The endpoint gave no reply; asked again, it may."""


@dataclass(frozen=True)
class Grade(Generic[Answer]):
    """What came of one question."""

    value: Answer | None
    """None where no reply could be used."""
    problem: str
    """Why the last reply could not be used; "" where it could."""
    raw: str
    """The last reply as it came."""
    call_ids: tuple[str, ...]
    """Of the replies in the store."""
    declined: bool = False
    """The model or its content filter did not answer at all."""
    filtered: bool = False
    """A filter refused this one question or its answer: it is not asked again."""


@dataclass(frozen=True)
class Grader:
    """A language model with its instructions; a subclass knows what is graded."""

    settings: LLMSettings
    store: Store
    budget: Budget | None = None
    instructions: Instructions = field(default_factory=load_instructions)

    purpose: ClassVar[str] = "judge"
    """By which the ledger counts calls."""
    kind: ClassVar[str] = ""
    """Stands before the instructions' name in the id."""

    def __post_init__(self) -> None:
        self.client()  # key and price are there

    @property
    def id(self) -> str:
        """``openai:MODEL@v1-3fa9c2d1``; another word or model is another grader.

        ``...-no-temperature`` where one was asked for and the endpoint takes none.
        """
        left_out = ""
        if self.settings.temperature is not None:
            taken = Capabilities.known(self.store, self.settings).temperature
            left_out = "" if taken else "-no-temperature"
        return f"openai:{self.settings.model}@{self.kind}{self.instructions.name}{left_out}"

    def settled(self) -> Self:
        """This grader, its id certain: a temperature was tried, if one is wanted.

        An id with which an experiment begins must be that with which it goes on. One small question
        finds out; its reply is stored, and no answer is no matter here.

        Raises:
            RunEnds: If the budget is spent or the endpoint takes no call.
        """
        settings = self.settings
        known = self.store.ledger.capabilities(settings.url, settings.model)
        if settings.temperature is not None and not settings.reasons and known is None:
            self.run(lambda client: client.ask(_SMALL, purpose=self.purpose, limit=_SMALL_LIMIT))
        return self

    def client(self) -> LLMClient:
        """A connection, in whose block questions are asked."""
        return LLMClient(self.settings, store=self.store, budget=self.budget)

    def run(self, work: Callable[[LLMClient], Awaitable[Result]]) -> Result:
        """Do some asking over a connection of its own, from outside of any event loop."""

        async def connected() -> Result:
            async with self.client() as client:
                return await work(client)

        return asyncio.run(connected())

    async def grade(
        self,
        client: LLMClient,
        messages: Sequence[Message],
        schema: type[Answer],
        *,
        salt: str = "0",
        check: Callable[[Answer], str] = lambda answer: "",
        remind: str = "",
    ) -> Grade[Answer]:
        """Ask until an answer can be used.

        Args:
            check: What is wrong with an answer in that form; "" if nothing is.
            remind: Said when the question is asked again.

        Raises:
            NoReply: If the endpoint gave none.
            RunEnds: If the budget is spent or the endpoint takes no call.
        """
        for fresh in (False, True):
            turns, calls, replayed = list(messages), [], True
            limit: int | None = None
            for _ in range(TRIES):
                reply = await client.ask(
                    turns,
                    schema=schema,
                    purpose=self.purpose,
                    subject=self.id,
                    salt=salt,
                    fresh=fresh,
                    limit=limit,
                )
                if isinstance(reply, CallFailed):
                    raise NoReply(reply.error)
                calls.append(reply.call_id)
                replayed = replayed and reply.cached
                problem = check(reply.value) if isinstance(reply, Ok) else why_unusable(reply)
                value = reply.value if isinstance(reply, Ok) and not problem else None
                declined = isinstance(reply, Refused | Filtered)
                # Of a later try the filter may have refused what was sent back, not the question.
                filtered = isinstance(reply, Filtered) and len(calls) == 1
                grade: Grade[Answer] = Grade(
                    value, problem, reply.raw, tuple(calls), declined, filtered
                )
                if value is not None or filtered:
                    return grade
                if declined:
                    break
                if isinstance(reply, Truncated):  # the same question would be cut off again
                    if limit is not None or self.settings.more_room is None:
                        break
                    limit = self.settings.more_room
                    continue
                turns += _sent_back(reply.raw, problem, remind)
            if not replayed:
                break
        return grade


async def every(work: Iterable[Awaitable[Result]]) -> list[Result]:
    """Results of work done at once; all of it ends first: a call in flight is paid for.

    Raises:
        BaseException: The first error, those that end a run before a missing reply.
    """
    ended = await asyncio.gather(*work, return_exceptions=True)
    errors = [item for item in ended if isinstance(item, BaseException)]
    if errors:
        raise next((e for e in errors if not isinstance(e, NoReply)), errors[0])
    return [item for item in ended if not isinstance(item, BaseException)]


def fenced(data: object) -> str:
    """One line of JSON between two lines with a mark that nothing within it can know.

    JSON escapes line breaks, and what else looks like one is escaped too, so no text under
    judgement can begin a line; the mark is a hash over the data, so no text can hold it.
    """
    line = one_line_json(data)
    mark = hashlib.sha256(line.encode()).hexdigest()[:16]
    return f"BEGIN DATA {mark}\n{line}\nEND DATA {mark}"


def one_line_json(data: object) -> str:
    """JSON on one line in which no text can write a control token of a chat template.

    Every control, format and line-breaking character is escaped; so is what control tokens begin
    with, ``<`` (``<|eot_id|>``, ``<start_of_turn>``) and ``[`` before a word (``[INST]``).
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    if not text.isascii() or "\x7f" in text:  # JSON escapes other ASCII controls by itself
        text = "".join(
            json.dumps(c)[1:-1] if unicodedata.category(c) in _ESCAPED else c for c in text
        )
    return without_control_tokens(text)


def without_control_tokens(text: str) -> str:
    """A text, of JSON say, in which what control tokens begin with is escaped as JSON does."""
    return _CONTROL.sub(lambda begin: f"\\u{ord(begin[0]):04x}", text)


_ESCAPED = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_CONTROL = re.compile(r"<|\[(?=/?(?!true|false|null)[A-Za-z_]\w*\])")


def _sent_back(raw: str, problem: str, remind: str) -> list[Message]:
    """The turns that follow an unusable answer; nothing of it can speak for another turn."""
    again = f"Answer again: {remind}." if remind else "Answer again."
    said = without_control_tokens(problem[:_SHOWN_PROBLEM])
    turns = [Message(role="user", content=f"That answer cannot be used: {said}. {again}")]
    shown = without_control_tokens(raw[:_SHOWN_AGAIN])
    return [Message(role="assistant", content=shown), *turns] if shown.strip() else turns
