"""Prompts written by a language model, round by round.

    async with LLMClient(settings, store=store) as client:
        written = await Writer(client, store, render, kind="chat").write(8)
        written.prompts, written.rejections

Each round asks, checks by code, renders what passed, and keeps it with what was turned
away and why. The question holds the history, so that a round killed before it was kept asks the
same again and finds the reply it has paid for. What a model writes beyond the number it was asked
for is kept like the rest, if it passes, and given before the model is asked again.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, ValidationError

from pivotal_tokens.generator.candidate import Candidate, Render, accept
from pivotal_tokens.generator.instructions import INSTRUCTIONS_VERSION
from pivotal_tokens.generator.request import generator_request
from pivotal_tokens.llm import LLMClient, Ok, why_unusable
from pivotal_tokens.prompts import PromptHistory, own_words
from pivotal_tokens.schema import Prompt, PromptKind, Rejection
from pivotal_tokens.store import Store

A_ROUND = 8
"""Prompts requested at a time."""


class _Proposal(BaseModel):
    model_config = ConfigDict(extra="ignore")

    name: str
    category: str
    safe: str
    evil: str


class TextProposal(_Proposal):
    """A raw or chain-of-thought prompt as a model gives it."""

    prompt: str


class ChatProposal(_Proposal):
    """A chat prompt as a model gives it."""

    user: str
    assistant: str


class TextProposals(BaseModel):
    """A reply to a question for raw or chain-of-thought prompts."""

    prompts: list[TextProposal]


class ChatProposals(BaseModel):
    """A reply to a question for chat prompts."""

    prompts: list[ChatProposal]


@dataclass(frozen=True)
class Round:
    """What came of asking once."""

    prompts: tuple[Prompt, ...]
    rejections: tuple[Rejection, ...]
    error: str = ""
    """Why the reply could not be used; "" where it could."""


class Writer:
    """Asks a model for prompts, round by round."""

    def __init__(
        self,
        client: LLMClient,
        store: Store,
        render: Render,
        *,
        kind: PromptKind = "raw",
        pair: str | None = None,
        run: str | None = None,
    ) -> None:
        """Index everything that was tried."""
        self._client, self._store, self._render = client, store, render
        self._kind, self._pair, self._run = kind, pair, run
        self._history = PromptHistory(own_words(prompt) for prompt in store.prompts.all())
        self._spare: tuple[Prompt, ...] = ()
        self._fresh = False  # the last reply was of no use

    @property
    def id(self) -> str:
        """Names the generator in every prompt."""
        return f"openai:{self._client.settings.model}"

    async def write(self, n: int) -> Round:
        """Up to `n` prompts: those left over from the last reply, or else from one new reply.

        Raises:
            BudgetExhausted: If the question does not fit into the budget.
        """
        if self._spare:
            return self._give(self._spare, n)
        settings = self._client.settings
        request = generator_request(
            self._store,
            kind=self._kind,
            n=min(n, A_ROUND),
            model=settings.model,
            pair=self._pair,
            output_tokens=settings.output_limit,
        )
        turned_away = sum(self._store.prompts.rejection_counts().values())
        reply = await self._client.ask(
            request.messages,
            schema=ChatProposals if self._kind == "chat" else TextProposals,
            purpose="generate",
            salt=f"{len(self._history)}+{turned_away}",
            fresh=self._fresh,
        )
        self._fresh = not isinstance(reply, Ok)
        if not isinstance(reply, Ok):
            return Round((), (), why_unusable(reply))
        return self._taken(reply.value.prompts, n)

    def _taken(self, proposals: list[TextProposal] | list[ChatProposal], n: int) -> Round:
        candidates, empty = [], []
        for proposal in proposals:
            try:
                fields = proposal.model_dump()
                text = fields.pop("prompt", "")
                candidates.append(Candidate(kind=self._kind, text=text, **fields))
            except ValidationError:
                empty.append(
                    Rejection(
                        text=proposal.name,
                        generator=self.id,
                        kind=self._kind,
                        rule="too-short",
                        message="no text",
                    )
                )
        accepted = accept(candidates, self._history, generator=self.id)
        rejections = (*accepted.rejections, *empty)
        extra: dict[str, object] = {"instructions": INSTRUCTIONS_VERSION}
        extra |= {"run": self._run} if self._run else {}
        prompts = tuple(
            p.model_copy(update={"generator": self.id, "extra": p.extra | extra})
            for p in map(self._render, accepted.candidates)
        )
        self._store.prompts.add_round(prompts, rejections)
        return self._give(prompts, n, rejections)

    def _give(
        self, prompts: tuple[Prompt, ...], n: int, rejections: tuple[Rejection, ...] = ()
    ) -> Round:
        self._spare = prompts[n:]
        return Round(prompts[:n], rejections)
