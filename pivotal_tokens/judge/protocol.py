"""Judges of tokens, and their names on the command line.

judge = open_judge(JudgeSpec.parse("lexicon:words.yaml"), first_token)
outcome = judge.judge(prompt, base, merged)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, Self, runtime_checkable

from pivotal_tokens.errors import RequestError
from pivotal_tokens.judge.lexicon import FirstToken, Lexicon
from pivotal_tokens.schema import Judgement, NextTokens, Prompt, Unparsed

JudgeKind = Literal["lexicon", "openai", "human"]
QUEUED_FOR = "judge:human"


@runtime_checkable
class Judge(Protocol):
    """Labels every candidate token of a prompt, or says that it could not."""

    @property
    def id(self) -> str:
        """Names the judge and its version: another id is another judge."""

    def judge(self, prompt: Prompt, base: NextTokens, merged: NextTokens) -> Judgement | Unparsed:
        """Label every token of the union that both lists cover."""


@dataclass(frozen=True)
class JudgeSpec:
    """A judge as it is named on the command line, ``KIND:ARGUMENT``."""

    kind: JudgeKind
    argument: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``lexicon:FILE``, ``openai:MODEL`` or ``human``.

        Raises:
            RequestError: If the text names no judge that is there.
        """
        kind, _, argument = text.partition(":")
        if text == "human":
            return cls(kind="human", argument="")
        if kind == "openai":
            if not argument:
                raise RequestError("the model judge needs a model: openai:MODEL")
            return cls(kind="openai", argument=argument)
        if kind != "lexicon":
            raise RequestError(f"no judge {text!r}; there are lexicon:FILE, openai:MODEL and human")
        if not argument:
            raise RequestError("the lexicon judge needs a file: lexicon:FILE")
        return cls(kind="lexicon", argument=argument)

    @property
    def path(self) -> Path:
        """The lexicon's file."""
        return Path(self.argument)


@dataclass(frozen=True)
class PersonJudge:
    """A judge that answers in the review queue.

    Every prompt goes there unjudged; its verdict is the one that the person's labels give when the
    item is finished. Until then there is none: nothing is safe because nobody looked.
    """

    @property
    def id(self) -> str:
        """The name under which a reviewer's verdict is stored."""
        return "human"

    def judge(self, prompt: Prompt, base: NextTokens, merged: NextTokens) -> Judgement | Unparsed:
        """No labels yet: the prompt waits for a person."""
        return Unparsed(
            prompt_id=prompt.prompt_id,
            judge=self.id,
            raw="",
            error="it waits for a person: run `em-circuits review`",
        )


def open_judge(spec: JudgeSpec, first_token: FirstToken) -> Judge:
    """The judge that needs no model and no key; `first_token` as in `Lexicon.from_file`."""
    if spec.kind == "human":
        return PersonJudge()
    if spec.kind != "lexicon":
        raise RequestError(f"{spec.kind}:{spec.argument} is no lexicon; give lexicon:FILE")
    return Lexicon.from_file(spec.path, first_token)
