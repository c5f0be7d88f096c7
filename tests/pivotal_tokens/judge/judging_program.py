"""A program to kill: it judges every screened prompt of a store that has no verdict yet.

python judging_program.py STORE BASE_URL CONCURRENCY
"""

from __future__ import annotations

import asyncio
import sys

from pivotal_tokens.judge import ModelJudge, persist
from pivotal_tokens.llm import Budget, LLMSettings
from pivotal_tokens.schema import Prompt, Thresholds
from pivotal_tokens.store import Store

PAIR = "pair-1"


def main(path: str, base_url: str, concurrency: str) -> None:
    with Store.open(f"sqlite:///{path}") as store:
        settings = LLMSettings(model="o3", base_url=base_url, max_concurrency=int(concurrency))
        judge = ModelJudge(settings, store=store, pair=PAIR, budget=Budget(max_usd=20))
        ids = [prompt.prompt_id for prompt in store.prompts.all()]
        lists, done = (
            store.results.next_tokens_of(ids, PAIR),
            store.results.judgements_of(ids, PAIR, judge.id),
        )

        async def judge_all() -> None:
            async with judge.session() as session, asyncio.TaskGroup() as tasks:

                async def one(prompt: Prompt) -> None:
                    judged = await session.ask(prompt, lists[prompt.prompt_id])
                    (kept,) = await session.client.in_store(
                        persist, store, PAIR, [judged], Thresholds()
                    )
                    print(kept.prompt.prompt_id, kept.error or "", flush=True)

                for prompt in store.prompts.all():
                    if prompt.prompt_id not in done:
                        tasks.create_task(one(prompt))

        asyncio.run(judge_all())


if __name__ == "__main__":
    main(*sys.argv[1:])
