"""Sources of a run's prompts, read a few at a time.

    with closing(open_source("openai:o3", work, kind="chat", settings=how)) as source:
        source.take(8)                       # new prompts; [] when there are no more

template     the embedded organism's own templates, one seed after another
seeds        the twenty shipped scenarios
openai:MODEL a language model behind an OpenAI-compatible endpoint

A run is named by what decides its prompts and verdicts, not by its length: asked for fifty prompts
after thirty, it goes on with twenty.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from em_circuits.labelling.graphs import with_graphs
from em_circuits.labelling.result import LabelSettings
from em_circuits.models.text import PINNED_DATE, render_chat, render_turns, strip_bos
from em_circuits.organisms import organism_prompts
from em_circuits.organisms.advice import drawn_advice
from em_circuits.organisms.paths import is_real
from em_circuits.workspace import Workspace
from pivotal_tokens.artefacts import content_key
from pivotal_tokens.errors import RequestError, RunEnds
from pivotal_tokens.generator import Candidate, Render, Writer, seeds
from pivotal_tokens.generator.candidate import SEEDS
from pivotal_tokens.llm import Budget, LLMClient, LLMSettings
from pivotal_tokens.prompts.chats import Chat, ChatRenderer, Turn
from pivotal_tokens.schema import Prompt, PromptKind

if TYPE_CHECKING:
    from em_circuits.models.pair import ModelPair

logger = logging.getLogger(__name__)

TEMPLATES = "template:organism"

_FAILED_ROUNDS = 5
"""Rounds in a row without a single prompt after which a generator is given up."""


class PromptStream:
    """Gives prompts that were not tried yet."""

    id: str
    """Name recorded as the generator of its prompts."""

    def take(self, n: int) -> list[Prompt]:
        """At most `n` new prompts; none when there are no more."""
        raise NotImplementedError

    def stop(self) -> None:
        """Start nothing more; may be called from another thread while prompts are read."""

    def close(self) -> None:
        """Let go of what it holds; called on the thread that takes."""


def chat_renderer(tokenizer) -> ChatRenderer:
    """Puts the model's chat template around the chats of a file."""

    def render(chat: Chat) -> tuple[str, dict[str, object]]:
        text, template = render_turns(tokenizer, chat)
        dated = {"date_string": PINNED_DATE} if template == "chat" else {}
        return text, {"template": template, **dated}

    return render


def renderer(tokenizer) -> Render:
    """Puts the model's chat template around candidates."""
    in_template = chat_renderer(tokenizer)

    def render(candidate: Candidate) -> Prompt:
        extra = dict(candidate.extra)
        if candidate.kind == "chat":
            turns = (Turn("user", candidate.user), Turn("assistant", candidate.assistant))
            text, about = in_template(turns)
            extra |= about
        else:
            text = strip_bos(tokenizer, candidate.text)
        return Prompt.of(
            text, kind=candidate.kind, name=candidate.name, category=candidate.category, extra=extra
        )

    return render


class ListSource(PromptStream):
    """Prompts that are all known beforehand."""

    def __init__(self, id: str, prompts: Iterable[Prompt]) -> None:
        self.id, self._prompts = id, iter(prompts)

    def take(self, n: int) -> list[Prompt]:
        return list(itertools.islice(self._prompts, n))


class Resumed(PromptStream):
    """A source that first gives what an earlier run left unfinished, and marks its prompts."""

    def __init__(self, source: PromptStream, run: str, unfinished: Sequence[Prompt]) -> None:
        self.id = source.id
        self._source, self._run = source, run
        self._unfinished = iter(unfinished)

    def take(self, n: int) -> list[Prompt]:
        left = list(itertools.islice(self._unfinished, n))
        if left:
            return left
        return [
            prompt.model_copy(update={"extra": prompt.extra | {"run": self._run}})
            for prompt in self._source.take(n)
        ]

    def stop(self) -> None:
        self._source.stop()

    def close(self) -> None:
        self._source.close()


def template_prompts(
    n: int, *, seed: int = 0, domains: Sequence[str] | None = None
) -> tuple[Prompt, ...]:
    """Pivotal prompts from the organism's templates, held-out pairs only, domains in rotation.

    Raises:
        RequestError: If a domain does not exist, or there are not that many distinct prompts.
    """
    return tuple(
        Prompt.of(
            drawn.text,
            generator=TEMPLATES,
            name=drawn.scenario,
            category=drawn.domain,
            extra={"item": drawn.item, "hazard": drawn.hazard, "seed": seed},
        )
        for drawn in organism_prompts(n, seed=seed, domains=domains)
    )


def drawn_prompts(
    of: Workspace | ModelPair, n: int, *, seed: int = 0, domains: Sequence[str] | None = None
) -> tuple[Prompt, ...]:
    """Pivotal prompts of an organism: of the real one, its scenarios as chats.

    Args:
        of: What has the organism's models; a workspace need not have loaded them.

    Raises:
        RequestError: If a domain does not exist, or there are not that many distinct prompts.
    """
    settings = of.models if isinstance(of, Workspace) else of.settings
    if not is_real(settings.base):
        return template_prompts(n, seed=seed, domains=domains)
    return tuple(
        Prompt.of(
            render_chat(of.tokenizer, user=drawn.user, assistant=drawn.assistant),
            kind="chat",
            generator=TEMPLATES,
            name=drawn.scenario.name,
            category=drawn.scenario.domain,
            extra={
                "user": drawn.user,
                "assistant": drawn.assistant,
                "date_string": PINNED_DATE,
                "seed": seed,
            },
        )
        for drawn in drawn_advice(n, seed, domains=domains)
    )


class TemplateSource(PromptStream):
    """The organism's templates: seed after seed, leaving out what is known."""

    id = TEMPLATES

    def __init__(
        self, work: Workspace, seed: int, domains: Sequence[str] | None, known: set[str]
    ) -> None:
        self._work, self._seed, self._domains, self._known = work, seed, domains, known

    def take(self, n: int) -> list[Prompt]:
        for _ in range(_FAILED_ROUNDS):
            drawn = drawn_prompts(self._work, n, seed=self._seed, domains=self._domains)
            self._seed += 1
            new = [prompt for prompt in drawn if prompt.prompt_id not in self._known]
            if new:
                self._known.update(prompt.prompt_id for prompt in new)
                return new
        return []


class WriterSource(PromptStream):
    """A language model, asked round by round; one event loop for all rounds."""

    def __init__(
        self,
        work: Workspace,
        settings: LLMSettings,
        budget: Budget | None,
        *,
        kind: PromptKind,
        pair: str | None,
        run: str | None,
    ) -> None:
        self.id = f"openai:{settings.model}"
        self._client = LLMClient(settings, store=work.store, budget=budget)
        self._open = lambda: Writer(
            self._client, work.store, renderer(work.tokenizer), kind=kind, pair=pair, run=run
        )
        self._runner: asyncio.Runner | None = None
        self._writer: Writer | None = None
        self._stopped = False

    def take(self, n: int) -> list[Prompt]:
        """New prompts; rounds that yield none are repeated a few times.

        Raises:
            BudgetExhausted: If no further question fits into the budget.
            RunEnds: If the endpoint gives no usable answer.
        """
        if self._runner is None or self._writer is None:
            self._runner = asyncio.Runner()
            self._runner.run(self._client.__aenter__())
            self._writer = self._open()
        for _ in range(_FAILED_ROUNDS):
            written = self._runner.run(self._writer.write(n))
            if written.prompts or self._stopped:
                return list(written.prompts)
            reasons = sorted({rejection.rule for rejection in written.rejections})
            logger.warning("%s: no new prompt: %s", self.id, written.error or ", ".join(reasons))
        if written.error:
            raise RunEnds(
                f"{self.id} gave no usable answer {_FAILED_ROUNDS} times in a row, the last time: "
                f"{written.error}; see that the endpoint works, then run it again"
            )
        return []

    def stop(self) -> None:
        self._stopped = True
        self._client.stop()

    def close(self) -> None:
        if self._runner is not None:
            self._runner.run(self._client.__aexit__(None, None, None))
            self._runner.close()
            self._runner = None


def open_source(
    spec: str,
    work: Workspace,
    *,
    kind: PromptKind = "raw",
    seed: int = 0,
    domains: Sequence[str] = (),
    settings: Callable[[str], LLMSettings] | None = None,
    budget: Budget | None = None,
    pair: str | None = None,
    run: str | None = None,
) -> PromptStream:
    """The source that ``--generator`` names.

    Args:
        pair: Learn from the verdicts on this pair of models only.
        run: Stands with the prompts, so that a killed run is gone on with.

    Raises:
        RequestError: If there is no such source.
    """
    name, _, model = spec.partition(":")
    if name == "template":
        known = {prompt.prompt_id for prompt in work.store.prompts.all(generator=TEMPLATES)}
        return TemplateSource(work, seed, domains or None, known)
    if domains:
        raise RequestError("--domain is of the organism's templates: --generator template")
    if name == "seeds":
        render = renderer(work.tokenizer)
        prompts = (render(each).model_copy(update={"generator": SEEDS}) for each in seeds())
        return ListSource(SEEDS, prompts)
    if name == "openai" and model and settings is not None:
        return WriterSource(work, settings(model), budget, kind=kind, pair=pair, run=run)
    raise RequestError(f"no generator {spec!r}; there are openai:MODEL, template and seeds")


def run_id(**what: Any) -> str:
    """Names a run (12 hex digits) by everything that decides what it does."""
    return content_key(what)[:12]


def earlier_prompts(
    work: Workspace, generator: str, run: str, judge: str, settings: LabelSettings
) -> tuple[int, list[Prompt]]:
    """How many prompts earlier starts of a run finished, and those that they left half done."""
    store, pair = work.store, work.pair.key
    mine = [p for p in store.prompts.all(generator=generator) if p.extra.get("run") == run]
    verdicts = store.results.verdicts_of([p.prompt_id for p in mine], pair, judge)
    built = with_graphs(work)
    unfinished = []
    for prompt in mine:
        verdict = verdicts.get(prompt.prompt_id)
        if verdict is None or (settings.wants_graphs(verdict) and prompt.prompt_id not in built):
            unfinished.append(prompt)
    return len(mine) - len(unfinished), unfinished
