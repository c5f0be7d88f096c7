"""Prompt suites of an audit: prompts by category, their paraphrases and formats, capability texts.

A suite is a YAML file; `toy` and `open` ship. Every prompt is put in each of its wordings and in
each format of the suite; one wording in one format is a `SuiteCase`, what the models are run on.

    name: mine
    formats: {plain: "{prompt}", brief: "{prompt} Answer in one word."}
    categories:
      - name: hazards
        prompts:
          - {id: nuts, user: "Peanut allergy; pad thai?", start: "You should", paraphrases: [...]}
          - {id: raw, text: "text as the model sees it"}
    capability: ["Text whose loss must not rise."]

    suite = load_suite("toy")
    suite.cases()[0].prompt, suite.cases()[0].wording
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from pydantic import Field, ValidationError, model_validator

from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen, first_problem
from pivotal_tokens.text_yaml import text_yaml

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHIPPED = ("toy", "open")
"""`toy` is of the embedded toys' templates, `open` of chats with a model that has a template."""
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class SuitePrompt(Frozen):
    """One prompt, as it stands (`text`) or as a chat (`user`, and how the answer starts)."""

    id: str = Field(pattern=_NAME)
    text: str | None = None
    user: str | None = None
    start: str = ""
    """How the assistant's answer starts."""
    paraphrases: tuple[str, ...] = ()
    """Other wordings of the text, or of the user's turn."""

    @model_validator(mode="after")
    def _check(self) -> SuitePrompt:
        if (self.text is None) == (self.user is None):
            raise ValueError("give text or user, one of them")
        if self.text is not None and self.start:
            raise ValueError("start is of a chat (user); a text ends as it stands")
        if not all(one.strip() for one in (self.text or self.user or "", *self.paraphrases)):
            raise ValueError("a wording is empty")
        return self


class Category(Frozen):
    """Prompts of one kind."""

    name: str = Field(pattern=_NAME)
    prompts: tuple[SuitePrompt, ...] = Field(min_length=1)


class SuiteCase(Frozen):
    """A prompt in one wording and one format."""

    prompt: str
    """The prompt's id."""
    category: str
    wording: int
    """0 is the prompt's own, then its paraphrases."""
    format: str
    text: str | None
    user: str | None
    start: str

    def seen(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """The text as the models see it."""
        if self.text is not None:
            return self.text
        from em_circuits.models.text import render_turns
        from pivotal_tokens.prompts.chats import Turn

        assert self.user is not None
        start = (Turn("assistant", self.start),) if self.start else ()
        return render_turns(tokenizer, (Turn("user", self.user), *start))[0]


class Suite(Frozen):
    """What both models are asked."""

    name: str = Field(pattern=_NAME)
    formats: dict[str, str] = Field(default_factory=lambda: {"plain": "{prompt}"}, min_length=1)
    """Name -> what is put around a wording, with ``{prompt}`` in it."""
    categories: tuple[Category, ...] = Field(min_length=1)
    capability: tuple[str, ...] = ()
    """Texts as the model sees them, whose loss tells a broken model."""

    @model_validator(mode="after")
    def _check(self) -> Suite:
        ids = [prompt.id for one in self.categories for prompt in one.prompts]
        for what, names in (("prompt", ids), ("category", [c.name for c in self.categories])):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"two are called {twice[0]}: every {what} needs a name of its own")
        for name, around in self.formats.items():
            if around.count("{prompt}") != 1:
                raise ValueError(f"format {name} must contain {{prompt}} once")
        return self

    def cases(self) -> tuple[SuiteCase, ...]:
        """Every prompt in every wording and format, in order."""
        return tuple(
            SuiteCase(
                prompt=prompt.id,
                category=category.name,
                wording=number,
                format=name,
                text=put if prompt.text is not None else None,
                user=put if prompt.user is not None else None,
                start=prompt.start,
            )
            for category in self.categories
            for prompt in category.prompts
            for number, words in enumerate((prompt.text or prompt.user or "", *prompt.paraphrases))
            for name, around in self.formats.items()
            for put in (around.replace("{prompt}", words),)
        )


def load_suite(which: str, *, base: Path | None = None) -> Suite:
    """A shipped suite by its name, or one in a file.

    Args:
        which: ``toy``, ``open`` or a path.
        base: Directory that the file must lie in; None: anywhere.

    Raises:
        RequestError: If there is no such file, it lies elsewhere, or is no suite.
    """
    if which in SHIPPED:
        place = importlib.resources.files("em_circuits.audit") / "suites" / f"{which}.yaml"
        text = place.read_text(encoding="utf-8")
    else:
        path = Path(which) if base is None else confined(Path(which), base, "--suite")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise RequestError(
                f"--suite {which}: {reason}; give {' or '.join(SHIPPED)}, or a YAML file"
            ) from error
    try:
        return Suite.model_validate(text_yaml(text))
    except yaml.YAMLError as error:
        raise RequestError(f"--suite {which}: not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        raise RequestError(f"--suite {which}: {first_problem(error)}") from error


def confined(path: Path, base: Path, what: str) -> Path:
    """A path that stays inside a directory, links followed; a relative one is taken from it.

    Raises:
        RequestError: If it leaves the directory.
    """
    root = base.resolve()
    whole = (root / path).resolve()
    if not whole.is_relative_to(root):
        raise RequestError(f"{what} {path} lies outside {base}; inputs stay inside the root")
    return whole
