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
from pivotal_tokens.llm.endpoint_errors import EndpointError, json_of
from pivotal_tokens.llm.ledger_writer import LedgerWriter
from pivotal_tokens.llm.prices import limits_of, price_of, worst_case
from pivotal_tokens.llm.replies import (
    CallFailed,
    Filtered,
    Ok,
    Reply,
    filtered_body,
    read_reply,
    usage_of,
)
from pivotal_tokens.llm.secrets import Redactor, read_key, redacted_logging
from pivotal_tokens.llm.settings import Budget, LLMSettings, Message
from pivotal_tokens.schema import new_id
from pivotal_tokens.store import Store
from pivotal_tokens.store.ledger import FILTERED, Closing, Opening, StoredReply
from pivotal_tokens.store.sessions import new_session

if TYPE_CHECKING:
    from pivotal_tokens.llm.transport import Transport

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")
_ADAPTATIONS = 6
_SHOWN = 300  # characters of what an endpoint says, in the ledger
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
    limit: int
    """Output tokens of the reply, at most."""


@dataclass(frozen=True)
class _RequestForm:
    """The form in which a question is put."""

    ability: Capabilities
    learned: Capabilities
    """What the client knew when the question was first put."""
    limit: int | None = None
    """Output tokens that fit beside this prompt; None: those of the question."""


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
        self._ability = await self._ledger.run(Capabilities.known, self._store, self.settings)
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
        limit: int | None = None,
    ) -> Reply:
        """Put a question, or find its reply.

        Args:
            schema: The form of the answer; None takes any text.
            purpose: What for ("judge", "generate", ...); charges are counted by it.
            subject: On whose behalf within that, a judge's id say; counted too.
            salt: Tells apart questions that are otherwise the same, as votes are.
            fresh: Ask anew even where a reply is stored, which turned out to be of no use.
            limit: Output tokens at most; None for those of the settings.

        Returns:
            What came of it; see `replies`.

        Raises:
            BudgetExhausted: If its worst case does not fit into the budget.
            EndpointRefused: If the endpoint takes no call at all.
        """
        settings, form = self.settings, strict_schema(schema) if schema else None
        if limit is not None:
            settings = settings.model_copy(update={"max_output_tokens": limit})
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
        question = _Question(tuple(messages), schema, form, opening, settings.output_limit)
        return await self._answer(question)

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
        form = _RequestForm(self._ability, self._ability)
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
                    if isinstance(reply, Ok | Filtered):
                        return reply
                    continue
                if deadline is None:
                    deadline = loop.time() + self.settings.deadline_s
                if not adaptations:  # what others learned while this one waited
                    form = _RequestForm(self._ability, self._ability)
                got = await self._send(question, form, call_id, deadline)
            stored = await self._settle(question, call_id, got)
            if stored is not None:
                if isinstance(got, Response) and got.error is None:
                    await self._remember(form.ability)
                return self._read(question, stored, cached=False)
            better = self._adapted(question, form, got) if adaptations < _ADAPTATIONS else None
            if better is not None:
                form, adaptations = better, adaptations + 1
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
        self, question: _Question, form: _RequestForm, call_id: str, deadline: float
    ) -> Attempt:
        if asyncio.get_running_loop().time() >= deadline:
            return Lost(self._too_late(), sent=False, final=True)
        limit = form.limit or question.limit
        body = request_body(
            form.ability, self.settings, question.messages, question.form, limit=limit
        )
        try:
            async with asyncio.timeout_at(deadline):
                got = await self._transport.send(body)
        except TimeoutError:
            return Lost(self._too_late(), sent=True, final=True)
        except asyncio.CancelledError:
            self._ledger.closing(Closing(call_id, "unknown", "cancelled"))
            raise
        if isinstance(got, Response):
            text = self._redact(got.body).replace("\0", "\\u0000")  # PostgreSQL takes none
            return Response(got.status, text, got.headers)
        return Lost(self._redact(got.problem), got.sent, got.final)

    async def _settle(self, question: _Question, call_id: str, got: Attempt) -> StoredReply | None:
        """Write down what an attempt came to; the reply, if there is one.

        A refusal of this one input is kept as a reply is: it is not asked again.
        """
        if isinstance(got, Lost):
            await self._ledger.close(Closing(call_id, got.charge, got.problem[:_SHOWN]))
            return None
        usage, reply = usage_of(json_of(got.body)), None
        status = "200" if got.error is None else got.problem[:_SHOWN]
        if got.error is None or got.error.refuses_input:
            messages = [message.model_dump() for message in question.messages]
            request = self._redact(canonical_json({"messages": messages, "schema": question.form}))
            body = got.body if got.error is None else filtered_body(got.error, got.body)
            reply = StoredReply(call_id, question.opening.cache_key, request, body)
            if isinstance(self._read(question, reply, cached=False), Filtered):
                status = f"{FILTERED}{status}"
        if usage is not None and got.status == 200:
            closing = Closing(
                call_id,
                "settled",
                status,
                prompt_tokens=usage.prompt_tokens,
                output_tokens=usage.output_tokens,
                nano_usd=self._price.nano_usd(usage) if self._price else None,
                reply=reply,
            )
        elif got.error is None:
            closing = Closing(call_id, "unknown", f"{status}, no usage", reply=reply)
        else:
            closing = Closing(call_id, got.charge, status, reply=reply)
        await self._ledger.close(closing)
        return reply

    def _read(self, question: _Question, stored: StoredReply, *, cached: bool) -> Reply:
        return read_reply(
            stored.body,
            question.schema,
            cached=cached,
            call_id=stored.call_id,
            reasoning=self.settings.read_reasoning,
        )

    def _adapted(
        self, question: _Question, form: _RequestForm, got: Attempt
    ) -> _RequestForm | None:
        """How to put a question that was turned down; None where another form would not help."""
        if isinstance(got, Lost) or got.error is None or got.code not in (400, 413, 422):
            return None
        if form.limit is None and (fits := got.error.fitting(question.limit)):
            return replace(form, limit=fits)
        if got.error.too_long:
            return None
        if form.learned != self._ability:  # by another call meanwhile
            return replace(form, ability=self._ability, learned=self._ability)
        ability = form.ability.after(got.error)
        return None if ability is None else replace(form, ability=ability)

    async def _remember(self, ability: Capabilities) -> None:
        """Keep the form in which a question was answered, if it is another than before."""
        known = {said.partition(":")[0] for said in self._ability.turned_down}
        new = [said for said in ability.turned_down if said.partition(":")[0] not in known]
        if not new:
            return
        for said in new:
            logger.warning(
                "%s at %s takes no %s (em-circuits judge show, judge reset)",
                self.settings.model,
                self.settings.url,
                said,
            )
        self._ability = ability
        if ability.sure.turned_down:
            await self._ledger.run(
                self._store.ledger.put_capabilities,
                self.settings.url,
                self.settings.model,
                ability.sure.model_dump_json(),
            )

    def _final(self, got: Attempt, call_id: str) -> Reply | None:
        """The outcome, if another attempt would end the same way; None if it may not."""
        if isinstance(got, Lost) or got.error is None:
            return CallFailed(got.problem, call_id) if isinstance(got, Lost) and got.final else None
        if got.code in _ENDS_THE_RUN or got.error.code in _NO_MONEY:
            raise EndpointRefused(_refused(got.error, self.settings))
        if got.error.too_long:
            return CallFailed(f"{got.problem} (--max-output-tokens lowers the request)", call_id)
        return None if got.code in RETRIED else CallFailed(got.problem, call_id)

    def _too_late(self) -> str:
        return f"no whole answer within {self.settings.deadline_s:g} s"

    def _wait(self, got: Attempt, attempt: int) -> float:
        """Seconds before the next attempt; an endpoint's own word holds for every call."""
        if got.retry_after is None:
            return jittered_wait(attempt, self._draw)
        self._pace.pause(min(got.retry_after, self.settings.deadline_s))
        return got.retry_after + self._draw.uniform(0, 0.1)


def _refused(error: EndpointError, settings: LLMSettings) -> str:
    what = {
        401: f"check the key in {settings.api_key_env}",
        404: f"check the model's name {settings.model!r} and --base-url",
    }.get(error.status, "check the account behind the key")
    return f"{settings.url} answered {error.status} ({error.message[:160]}): {what}"
