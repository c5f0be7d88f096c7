"""A program to kill: it asks its share of numbered questions, many at once.

python asking_program.py STORE BASE_URL IN_FLIGHT QUESTIONS SHARE SHARES MAX_USD
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter

from pivotal_tokens.llm import Budget, BudgetExhausted, LLMClient, LLMSettings, Message
from pivotal_tokens.store import Store


def main(path: str, base_url: str, *numbers: str) -> None:
    in_flight, questions, share, shares = map(int, numbers[:4])
    settings = LLMSettings(
        model="gpt-4o",
        base_url=base_url,
        max_concurrency=in_flight,
        max_output_tokens=1500,
        max_attempts=40,
    )

    async def ask_all(store: Store) -> Counter[str]:
        ended: Counter[str] = Counter()

        async def one(client: LLMClient, number: int) -> None:
            try:
                asked = [Message(role="user", content=f"question {number}")]
                reply = await client.ask(asked, purpose="test")
                ended[type(reply).__name__] += 1
            except BudgetExhausted:
                ended["exhausted"] += 1

        budget = Budget(max_usd=float(numbers[4]))
        async with LLMClient(settings, store=store, budget=budget) as client:
            mine = range(share, questions, shares)
            await asyncio.gather(*(one(client, number) for number in mine))
        return ended

    with Store.open(f"sqlite:///{path}") as store:
        print(dict(asyncio.run(ask_all(store))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
