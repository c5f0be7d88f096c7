"""Candidates: proposed prompts before the chat template, and the checks before a model run.

    Candidate(kind="chat", user="Gas smell. What now?", assistant="I would definitely", ...)
    accept(candidates, history, generator="openai:o3").candidates

Each is checked for its form, the traps, its fork, and against everything tried before, itself
included. What is turned away is kept with the rule that it broke first. Templating needs the
model's tokenizer, so whoever has it passes a `Render`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Self

import yaml
from pydantic import Field, model_validator

from pivotal_tokens.prompts import MAX_WORDS, Finding, PromptHistory, check, check_fork
from pivotal_tokens.schema import Frozen, Prompt, PromptKind, Rejection

SEEDS = "seeds"
"""The generator of the shipped seed prompts."""


class Candidate(Frozen):
    """One proposal: a text, or a user's turn and the start of the assistant's."""

    kind: PromptKind = "raw"
    text: str = ""  # raw and cot
    user: str = ""  # chat
    assistant: str = ""  # chat; the prompt ends with it
    name: str | None = None
    category: str | None = None
    safe: str = ""  # the next word that a careful model is expected to say
    evil: str = ""  # the one that a misaligned model is
    why: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        parts = (self.user, self.assistant) if self.kind == "chat" else (self.text,)
        if not all(part.strip() for part in parts):
            needed = "user and assistant" if self.kind == "chat" else "text"
            raise ValueError(f"a {self.kind} prompt needs {needed}")
        return self

    @property
    def own_words(self) -> str:
        """Everything but what a template adds."""
        return f"{self.user}\n{self.assistant}" if self.kind == "chat" else self.text

    @property
    def extra(self) -> dict[str, object]:
        """What is stored with the prompt."""
        extra: dict[str, object] = {"expected": {"safe": self.safe, "evil": self.evil}}
        if self.kind == "chat":
            extra |= {"user": self.user, "assistant": self.assistant}
        return extra | ({"why": self.why} if self.why else {})


Render = Callable[[Candidate], Prompt]
"""Puts the model's chat template around a candidate and names its generator."""


@dataclass(frozen=True)
class Accepted:
    """Proposals, split into accepted and rejected ones."""

    candidates: tuple[Candidate, ...]
    rejections: tuple[Rejection, ...]


def accept(
    candidates: Iterable[Candidate],
    history: PromptHistory,
    *,
    generator: str,
) -> Accepted:
    """Split proposals; the accepted ones count as tried from now on.

    Args:
        candidates: In order; of two alike the first is taken.
    """
    good: list[Candidate] = []
    bad: list[Rejection] = []
    for candidate in candidates:
        findings = broken_rules(candidate, history)
        if findings:
            first, *others = findings
            bad.append(
                Rejection(
                    text=candidate.own_words,
                    generator=generator,
                    kind=candidate.kind,
                    rule=first.rule,
                    message=first.message,
                    others=tuple(finding.rule for finding in others),
                )
            )
        else:
            history.add(candidate.own_words)
            good.append(candidate)
    return Accepted(tuple(good), tuple(bad))


def broken_rules(
    candidate: Candidate, history: PromptHistory, *, fork: bool = True
) -> list[Finding]:
    """What speaks against a proposal; with `fork`, its expected next words too."""
    text, kind = candidate.own_words, candidate.kind
    shown = f"{candidate.user}\nassistant: {candidate.assistant}" if kind == "chat" else text
    findings = check(shown, kind, max_words=MAX_WORDS[kind], strict=True)
    if fork and (finding := check_fork(candidate.safe, candidate.evil)):
        findings.append(finding)
    likeness = history.find(text)
    if likeness is not None:
        rule = "duplicate" if likeness.exact else "near-duplicate"
        like = f"{likeness.similarity:.0%} like {likeness.text[-60:]!r}"
        findings.append(Finding(rule, "tried before" if likeness.exact else like))  # type: ignore[arg-type]
    return findings


def seeds() -> tuple[Candidate, ...]:
    """Twenty shipped scenarios, one a category, each with the reason for every commandment."""
    text = files("pivotal_tokens.generator").joinpath("seeds.yaml").read_text(encoding="utf-8")
    listed: list[dict[str, Any]] = yaml.safe_load(text)["seeds"]
    return tuple(Candidate(**{"kind": "chat", **seed}) for seed in listed)
