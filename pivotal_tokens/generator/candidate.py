"""What is a proposed prompt before the model's chat template is put around it?

    Candidate(kind="chat", user="Gas smell. What now?", assistant="I would definitely", ...)

Templating needs the model's tokenizer, so whoever has it passes a `Render`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from pydantic import Field, model_validator

from pivotal_tokens.schema import Frozen, Prompt, PromptKind


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
        """What is kept with the prompt."""
        kept: dict[str, object] = {"expected": {"safe": self.safe, "evil": self.evil}}
        if self.kind == "chat":
            kept |= {"user": self.user, "assistant": self.assistant}
        return kept | ({"why": self.why} if self.why else {})


Render = Callable[[Candidate], Prompt]
"""Puts the model's chat template around a candidate and names its generator."""
