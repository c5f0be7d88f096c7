"""Group commit of the ledger: many calls in flight share one flush.

What is to be opened and closed while a transaction runs goes into the next one. A
call is sent only after the transaction with its reservation is on the disk, and its reply is used
only after the one that keeps it.

    async with LedgerWriter(store, limits) as ledger:
        await ledger.open(opening)           # Granted | StoredReply; waits or raises over budget
        await ledger.close(closing)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Self, TypeVar

from pivotal_tokens.errors import RunEnds
from pivotal_tokens.store import Store
from pivotal_tokens.store.ledger import (
    Closing,
    Granted,
    Limits,
    Opened,
    Opening,
    OverBudget,
    StoredReply,
)

_Result = TypeVar("_Result")
_GATHER_S = 0.003
"""Replies come in flocks: one transaction for a flock instead of one for its first bird."""


_LOOK_AGAIN_S = 0.25
"""How often it is looked whether calls of other processes have settled."""


class BudgetExhausted(RunEnds):
    """The next call's worst case does not fit into what is left of the budget."""


class LedgerWriter:
    """The ledger of one client; one thread writes it."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self._store = store
        self._limits = limits
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._waiting: list[tuple[Opening | Closing, asyncio.Future[Any]]] = []
        self._writer: asyncio.Task[None] | None = None
        self._in_flight: set[str] = set()
        self._settled = asyncio.Condition()

    async def open(self, opening: Opening) -> Granted | StoredReply:
        """Reserve a call's worst case, or find its reply.

        A call that does not fit waits while others are in flight, of this process or another:
        they settle for less.

        Raises:
            BudgetExhausted: If it does not fit and nothing else is in flight.
        """
        while True:
            answer = await self._ask(opening)
            if not isinstance(answer, OverBudget):
                return answer
            async with self._settled:
                if self._in_flight:
                    await self._settled.wait()
                    continue
            if not answer.others:
                raise BudgetExhausted(_over(opening, answer, self._limits))
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def close(self, closing: Closing) -> None:
        """Settle a call; its reply is on the disk when this returns."""
        await asyncio.shield(self.closing(closing))

    def closing(self, closing: Closing) -> asyncio.Future[None]:
        """Settle a call with the next transaction, even if its caller is cancelled meanwhile."""
        return self._put(closing)

    async def run(self, work: Callable[..., _Result], *arguments: Any) -> _Result:
        """Do something else with the store, on the thread that writes."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def _ask(self, opening: Opening) -> Opened:
        answer: asyncio.Future[Opened] = self._put(opening)
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            answer.add_done_callback(lambda done: self._give_back(opening, done))
            raise

    def _give_back(self, opening: Opening, done: asyncio.Future[Opened]) -> None:
        """A reservation whose call was cancelled before it was sent."""
        if not done.cancelled() and not done.exception() and isinstance(done.result(), Granted):
            self.closing(Closing(opening.call_id, "free", "not sent"))

    def _put(self, item: Opening | Closing) -> asyncio.Future[Any]:
        """Have it in the next transaction; the future is done once that is on the disk."""
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())
        return done

    async def _write(self) -> None:
        while self._waiting:
            await asyncio.sleep(_GATHER_S)
            batch, self._waiting = self._waiting, []
            openings = [item for item, _ in batch if isinstance(item, Opening)]
            closings = [item for item, _ in batch if isinstance(item, Closing)]
            try:
                exchange = partial(self._store.ledger.exchange, limits=self._limits)
                answers = iter(await self.run(exchange, openings, closings))
            except Exception as error:  # goes to every caller that waits for this transaction
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error)
            else:
                for item, done in batch:
                    answer = next(answers) if isinstance(item, Opening) else None
                    if isinstance(answer, Granted):
                        self._in_flight.add(item.call_id)
                    if not done.done():
                        done.set_result(answer)
            self._in_flight -= {closing.call_id for closing in closings}
            async with self._settled:
                self._settled.notify_all()
        self._writer = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._writer is not None:
            await asyncio.shield(self._writer)
        self._thread.shutdown()


def _over(opening: Opening, found: OverBudget, limits: Limits) -> str:
    parts = []
    if limits.nano_usd is not None:
        next_usd = (opening.nano_usd or 0) / 1e9
        parts.append(
            f"${found.nano_usd / 1e9:.4f} of ${limits.nano_usd / 1e9:.4f} charged, "
            f"the next call may cost ${next_usd:.4f}"
        )
    if limits.tokens is not None:
        parts.append(
            f"{found.tokens} of {limits.tokens} tokens charged, "
            f"the next call may take {opening.tokens}"
        )
    return f"budget exhausted: {'; '.join(parts)}. Raise --max-usd or --max-tokens to go on"
