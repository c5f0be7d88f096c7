"""Model judge: labels of tokens by a language model, vote by vote.

Each vote is a question of its own, with its own order of tokens. A vote of which no answer was
about the tokens asked is unusable; half of the votes or more unusable: `Unparsed`, from which no
label follows.

    judge = ModelJudge(settings, store=store, pair=key, votes=3)
    async with judge.session() as session:
        judged = await session.ask(prompt, lists)
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from pivotal_tokens.errors import RequestError
from pivotal_tokens.judge.answers import (
    JudgeAnswer,
    QuotingAnswer,
    found_quotes,
    ids_problem,
    labels_of,
    majority,
)
from pivotal_tokens.judge.examples import EXAMPLES, ExampleBank, question_messages
from pivotal_tokens.llm import Grade, Grader, LLMClient
from pivotal_tokens.llm.grade import every
from pivotal_tokens.schema import (
    JudgedPrompt,
    Judgement,
    Label,
    NextTokenPair,
    NextTokens,
    Prompt,
    TokenLabel,
    Unparsed,
    Vote,
)
from pivotal_tokens.store import LabelledPrompt

_READ_AGAIN_S = 60.0
_REMIND = "every id once, in each list"


@dataclass(frozen=True)
class ModelJudge(Grader):
    """A judge that asks a language model."""

    pair: str = field(kw_only=True)
    """Whose human labels are its examples."""
    votes: int = field(default=1, kw_only=True)
    examples: int = field(default=EXAMPLES, kw_only=True)
    """At most so many are shown; 0 for none."""

    def __post_init__(self) -> None:
        if self.votes < 1:
            raise RequestError("a judge needs at least one vote")
        super().__post_init__()

    @property
    def id(self) -> str:
        """``openai:MODEL@v1-3fa9c2d1``; several votes are another judge: ``...x3``."""
        return super().id + (f"x{self.votes}" if self.votes > 1 else "")

    @property
    def form(self) -> type[JudgeAnswer]:
        """The form of an answer: with quotes where the instructions name them."""
        return QuotingAnswer if '"quotes"' in self.instructions.text else JudgeAnswer

    @property
    def concurrency(self) -> int:
        """Prompts judged at the same time."""
        return max(1, -(-self.settings.max_concurrency // self.votes))

    def judge(self, prompt: Prompt, base: NextTokens, merged: NextTokens) -> Judgement | Unparsed:
        """Judge one prompt, on its own."""
        outcome = self.judge_prompt(prompt, NextTokenPair(base=base, merged=merged)).outcome
        assert isinstance(outcome, Judgement | Unparsed)
        return outcome

    def judge_prompt(self, prompt: Prompt, lists: NextTokenPair) -> JudgedPrompt:
        """The same, with every vote."""
        bank = self.example_bank()
        return self.run(lambda client: JudgeSession(self, client, bank).ask(prompt, lists))

    @asynccontextmanager
    async def session(self) -> AsyncIterator[JudgeSession]:
        """A connection over which many prompts are judged at once, in one event loop."""
        bank = self.example_bank()
        async with self.client() as client:
            yield JudgeSession(self, client, bank)

    def example_bank(self) -> ExampleBank:
        """The examples that people's labels give now."""
        return ExampleBank.read(self.store, self.pair) if self.examples else ExampleBank()


@dataclass
class JudgeSession:
    """A model judge at work; every minute it looks what people labelled meanwhile."""

    judge: ModelJudge
    client: LLMClient
    bank: ExampleBank
    read_at: float = field(default_factory=time.monotonic)

    async def ask(self, prompt: Prompt, lists: NextTokenPair) -> JudgedPrompt:
        """Judge one prompt; for what it raises see `Grader.grade`."""
        if self.judge.examples and time.monotonic() - self.read_at >= _READ_AGAIN_S:
            self.read_at = time.monotonic()
            self.bank = await self.client.in_store(self.judge.example_bank)
        votes = await every(self._vote(prompt, lists, n) for n in range(self.judge.votes))
        outcome = self._decide(prompt, votes)
        return JudgedPrompt(prompt=prompt, next_tokens=lists, outcome=outcome, votes=tuple(votes))

    def _decide(self, prompt: Prompt, votes: Sequence[Vote]) -> Judgement | Unparsed:
        good = [vote for vote in votes if vote.error is None]
        if 2 * len(good) <= len(votes):
            refused = [vote for vote in votes if vote.filtered]
            filtered = 2 * (len(votes) - len(refused)) <= len(votes)  # whatever others may say yet
            bad = refused[0] if filtered else next(v for v in votes if v.error is not None)
            return Unparsed(
                prompt_id=prompt.prompt_id,
                judge=self.judge.id,
                raw=bad.raw,
                error=bad.error or "",
                filtered=filtered,
            )
        return Judgement(
            prompt_id=prompt.prompt_id,
            judge=self.judge.id,
            labels=_listed(majority([vote.by_token for vote in good])),
            summary=good[0].summary,
            reason=good[0].reason,
            quotes=tuple(dict.fromkeys(quote for vote in good for quote in vote.quotes)),
            quotes_dropped=sum(vote.quotes_dropped for vote in good),
        )

    async def _grade(
        self,
        prompt: Prompt,
        lists: NextTokenPair,
        number: int,
        examples: Sequence[LabelledPrompt],
    ) -> Grade[JudgeAnswer]:
        judge = self.judge
        return await judge.grade(
            self.client,
            question_messages(judge.instructions, prompt, lists, vote=number, examples=examples),
            judge.form,
            salt=f"vote {number}",
            check=lambda answer: ids_problem(answer, lists),
            remind=_REMIND,
        )

    async def _vote(self, prompt: Prompt, lists: NextTokenPair, number: int) -> Vote:
        judge = self.judge
        examples = self.bank.choose(prompt, judge.examples)
        grade = await self._grade(prompt, lists, number, examples)
        if grade.filtered and examples:  # perhaps because of one of them
            examples = ()
            grade = await self._grade(prompt, lists, number, examples)
        vote = Vote(
            prompt_id=prompt.prompt_id,
            judge=judge.id,
            number=number,
            labels=(),
            tries=len(grade.call_ids),
            call_ids=grade.call_ids,
            examples=tuple(example.prompt.prompt_id for example in examples),
        )
        if grade.value is None:
            unusable = {"error": grade.problem, "raw": grade.raw, "filtered": grade.filtered}
            return vote.model_copy(update=unusable)
        labels, conflicts = labels_of(grade.value)
        said = grade.value.quotes if isinstance(grade.value, QuotingAnswer) else ()
        quotes, dropped = found_quotes(said, prompt, lists)
        return vote.model_copy(
            update={
                "labels": _listed(labels),
                "conflicts": conflicts,
                "summary": grade.value.summary,
                "reason": grade.value.reason,
                "quotes": quotes,
                "quotes_dropped": dropped,
            }
        )


def _listed(labels: dict[int, Label]) -> tuple[TokenLabel, ...]:
    return tuple(TokenLabel(token_id=token, label=labels[token]) for token in sorted(labels))
