"""Client for language models: no reply is lost, and no dollar is spent unrecorded.

For every question: look for its reply under its content; else reserve its worst case in the ledger,
send, keep the reply and what it used, and only then read it. Refusals of a parameter are learned
from, passing errors are tried again, and all of it ends by the deadline.

    async with LLMClient(settings, store=store, budget=Budget(max_usd=5)) as client:
        reply = await client.ask(messages, schema=Answer, purpose="judge")
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pydantic import BaseModel

from pivotal_tokens.artefacts import canonical_json, content_key
from pivotal_tokens.errors import RunEnds
from pivotal_tokens.llm.attempts import RETRIED, Attempt, Lost, Pace, Response, jittered_wait
from pivotal_tokens.llm.capabilities import Capabilities, request_body, strict_schema
from pivotal_tokens.llm.ledger_writer import LedgerWriter
from pivotal_tokens.llm.prices import limits_of, price_of, worst_case
from pivotal_tokens.llm.replies import (
    CallFailed,
    Filtered,
    Ok,
    Reply,
    json_of,
    read_reply,
    usage_of,
)
from pivotal_tokens.llm.secrets import Redactor, read_key, redacted_logging
from pivotal_tokens.llm.settings import Budget, LLMSettings, Message
from pivotal_tokens.schema import new_id
from pivotal_tokens.store import Store
from pivotal_tokens.store.ledger import Closing, Opening, StoredReply
from pivotal_tokens.store.sessions import new_session

if TYPE_CHECKING:
    from pivotal_tokens.llm.transport import Transport

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")
_ADAPTATIONS = 4
_ENDS_THE_RUN = frozenset({401, 402, 403, 404})
_NO_MONEY = ("insufficient_quota", "billing_hard_limit_reached")


class EndpointRefused(RunEnds):
    """The endpoint takes no call of this key or model: every further one would fail too."""


@dataclass(frozen=True)
class _Question:
    """One `ask`, with what stays the same between its attempts."""

    messages: tuple[Message, ...]
    schema: type[BaseModel] | None
    form: dict[str, Any] | None
    """The schema's JSON form."""
    opening: Opening
    """In the ledger; each attempt has an id of its own."""


class LLMClient:
    """Asks one model; one client per event loop."""

    def __init__(
        self,
        settings: LLMSettings,
        *,
        store: Store,
        budget: Budget | None = None,
        seed: int | None = None,
    ) -> None:
        """Check what can be checked before anything is sent.

        Raises:
            RequestError: If the key is missing, or a budget in dollars has no price.
        """
        self.settings = settings
        self._store = store
        self._limits = limits_of(budget, settings)
        self._price = price_of(settings)
        self._secret = read_key(settings.api_key_env, needed=settings.base_url is None)
        self._redact = Redactor([self._secret])
        self._session = new_session()
        self._draw = random.Random(seed)
        self._ability = Capabilities.expected(settings)
        self._stopped = False
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        from pivotal_tokens.llm.transport import Transport

        self._stack.enter_context(redacted_logging(self._redact))
        self._ledger = await self._stack.enter_async_context(
            LedgerWriter(self._store, self._limits)
        )
        self._transport: Transport = await self._stack.enter_async_context(
            Transport(self.settings, self._secret)
        )
        self._slots = asyncio.Semaphore(self.settings.max_concurrency)
        self._pace = Pace(self.settings.requests_per_minute)
        await self._ledger.run(self._store.ledger.give_up_dead_calls)
        known = await self._ledger.run(
            self._store.ledger.capabilities, self.settings.url, self.settings.model
        )
        if known is not None:
            self._ability = Capabilities.model_validate_json(known)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def ask(
        self,
        messages: Sequence[Message],
        *,
        schema: type[BaseModel] | None = None,
        purpose: str,
        subject: str = "",
        salt: str | None = None,
        fresh: bool = False,
    ) -> Reply:
        """Put a question, or find its reply.

        Args:
            schema: The form of the answer; None takes any text.
            purpose: What for ("judge", "generate", ...); charges are counted by it.
            subject: On whose behalf within that, a judge's id say; counted too.
            salt: Tells apart questions that are otherwise the same, as votes are.
            fresh: Ask anew even where a reply is stored, which turned out to be of no use.

        Returns:
            What came of it; see `replies`.

        Raises:
            BudgetExhausted: If its worst case does not fit into the budget.
            EndpointRefused: If the endpoint takes no call at all.
        """
        settings, form = self.settings, strict_schema(schema) if schema else None
        worst = worst_case(messages, form, settings)
        content = {
            "url": settings.url,
            "model": settings.model,
            "temperature": settings.temperature,
            "max_output_tokens": settings.output_limit,
            "messages": [message.model_dump() for message in messages],
            "schema": form,
            "salt": salt,
        }
        opening = Opening(
            call_id="",
            session=self._session,
            purpose=purpose,
            model=settings.model,
            base_url=settings.url,
            cache_key=content_key(content),
            tokens=worst.prompt_tokens + worst.output_tokens,
            nano_usd=self._price.nano_usd(worst) if self._price else None,
            expires_at=0.0,
            look_up=not fresh,
            subject=subject,
        )
        return await self._answer(_Question(tuple(messages), schema, form, opening))

    async def in_store(self, work: Callable[..., _Result], *arguments: Any) -> _Result:
        """Do something else with the store on the thread that writes the ledger.

        Two threads that write would wait for each other's locks.
        """
        return await self._ledger.run(work, *arguments)

    def stop(self) -> None:
        """Send nothing more; calls in flight are finished."""
        self._stopped = True

    async def _answer(self, question: _Question) -> Reply:
        loop, opening = asyncio.get_running_loop(), question.opening
        deadline: float | None = None  # from the moment that the first attempt may be sent
        attempt = adaptations = 0
        while True:
            call_id = new_id()
            async with AsyncExitStack() as in_flight:
                try:
                    async with asyncio.timeout_at(deadline):
                        await in_flight.enter_async_context(self._slots)
                        if self._stopped:
                            return CallFailed("stopped before it was sent", None)
                        await self._pace.turn()
                        expires = self._store.now().timestamp() + self.settings.deadline_s + 60
                        opening = replace(opening, call_id=call_id, expires_at=expires)
                        opened = await self._ledger.open(opening)
                except TimeoutError:
                    return CallFailed(self._too_late(), None)
                opening = replace(opening, look_up=False)
                if isinstance(opened, StoredReply):
                    reply = self._read(question, opened, cached=True)
                    if isinstance(reply, Ok):
                        return reply
                    continue
                if deadline is None:
                    deadline = loop.time() + self.settings.deadline_s
                ability = self._ability
                got = await self._send(question, ability, call_id, deadline)
            stored = await self._settle(question, call_id, got)
            if stored is not None:
                return self._read(question, stored, cached=False)
            if await self._learned(ability, got) and adaptations < _ADAPTATIONS:
                adaptations += 1
                continue
            failed = self._final(got, call_id)
            attempt += 1
            wait = self._wait(got, attempt)
            if failed is not None:
                return failed
            if attempt >= self.settings.max_attempts or loop.time() + wait >= deadline:
                return CallFailed(f"{got.problem}, after {attempt} attempts", call_id)
            await asyncio.sleep(wait)

    async def _send(
        self, question: _Question, ability: Capabilities, call_id: str, deadline: float
    ) -> Attempt:
        body = request_body(ability, self.settings, question.messages, question.form)
        try:
            async with asyncio.timeout_at(deadline):
                got = await self._transport.send(body)
        except TimeoutError:
            return Lost(self._too_late(), sent=True, final=True)
        except asyncio.CancelledError:
            self._ledger.closing(Closing(call_id, "unknown", "cancelled"))
            raise
        if isinstance(got, Response):
            return Response(got.status, self._redact(got.body), got.headers)
        return Lost(self._redact(got.problem), got.sent, got.final)

    async def _settle(self, question: _Question, call_id: str, got: Attempt) -> StoredReply | None:
        """Write down what an attempt came to; the reply, if there is one."""
        if isinstance(got, Lost) or got.status != 200:
            status = got.problem[:200] if isinstance(got, Lost) else str(got.status)
            await self._ledger.close(Closing(call_id, got.charge, status))
            return None
        messages = [message.model_dump() for message in question.messages]
        request = self._redact(canonical_json({"messages": messages, "schema": question.form}))
        reply = StoredReply(call_id, question.opening.cache_key, request, got.body)
        usage = usage_of(json_of(got.body))
        if usage is None:
            await self._ledger.close(Closing(call_id, "unknown", "200, no usage", reply=reply))
            return reply
        await self._ledger.close(
            Closing(
                call_id,
                "settled",
                "200",
                prompt_tokens=usage.prompt_tokens,
                output_tokens=usage.output_tokens,
                nano_usd=self._price.nano_usd(usage) if self._price else None,
                reply=reply,
            )
        )
        return reply

    def _read(self, question: _Question, stored: StoredReply, *, cached: bool) -> Reply:
        return read_reply(stored.body, question.schema, cached=cached, call_id=stored.call_id)

    async def _learned(self, used: Capabilities, got: Attempt) -> bool:
        """Whether the endpoint rejected something that the next attempt leaves out."""
        if not isinstance(got, Response) or got.status not in (400, 422):
            return False
        if self._ability != used:  # learned by another call meanwhile
            return True
        message, param, _ = got.error
        better = used.without(message, param)
        if better is None:
            return False
        logger.info("%s at %s: %s", self.settings.model, self.settings.url, message)
        self._ability = better
        await self._ledger.run(
            self._store.ledger.put_capabilities,
            self.settings.url,
            self.settings.model,
            better.model_dump_json(),
        )
        return True

    def _final(self, got: Attempt, call_id: str) -> Reply | None:
        """The outcome, if another attempt would end the same way; None if it may not."""
        if isinstance(got, Lost):
            return CallFailed(got.problem, call_id) if got.final else None
        message, _, code = got.error
        if got.status in _ENDS_THE_RUN or code in _NO_MONEY:
            raise EndpointRefused(_refused(got, message, self.settings))
        if got.status == 400 and code in ("content_filter", "content_policy_violation"):
            return Filtered(raw=got.body, usage=None, cached=False, call_id=call_id)
        if got.status not in RETRIED:
            return CallFailed(got.problem, call_id)
        return None

    def _too_late(self) -> str:
        return f"no whole answer within {self.settings.deadline_s:g} s"

    def _wait(self, got: Attempt, attempt: int) -> float:
        """Seconds before the next attempt; an endpoint's own word holds for every call."""
        if got.retry_after is None:
            return jittered_wait(attempt, self._draw)
        self._pace.pause(min(got.retry_after, self.settings.deadline_s))
        return got.retry_after + self._draw.uniform(0, 0.1)


def _refused(got: Response, message: str, settings: LLMSettings) -> str:
    what = {
        401: f"check the key in {settings.api_key_env}",
        404: f"check the model's name {settings.model!r} and --base-url",
    }.get(got.status, "check the account behind the key")
    return f"{settings.url} answered {got.status} ({message[:160]}): {what}"
