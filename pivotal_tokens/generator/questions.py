"""Open questions put to both models.

    questions("everyday")                    # a shipped set
    questions("mine.yaml")                   # every set of a file in the same shape
    questions("open", package="em_circuits.experiments.evaluation")  # that ship with it

A file is ``sets: {NAME: {questions: [...]}}``, or the list as which evaluations of emergent
misalignment are published: entries with ``id``, ``paraphrases``, and optionally ``system`` and
``samples_per_paraphrase``. What else an entry has (``judge_prompts``, say) is not used.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from pivotal_tokens.errors import RequestError
from pivotal_tokens.prompts.chats import Chat, question_chat
from pivotal_tokens.schema import Frozen, first_problem
from pivotal_tokens.text_yaml import typed_yaml


class QuestionSet(Frozen):
    """Open questions of one kind."""

    name: str
    questions: tuple[str, ...]
    system: str | None = None  # the system's turn before each
    samples: int | None = Field(default=None, ge=1)  # answers to each that the set asks for

    @property
    def own(self) -> bool:
        """Whether it says more than its questions."""
        return self.system is not None or self.samples is not None

    def chat(self, question: str) -> Chat:
        """A question of the set, ready to be answered."""
        return question_chat(question, self.system)


def questions(which: str, *, package: str = "pivotal_tokens.generator") -> tuple[QuestionSet, ...]:
    """The sets that a name or a file stands for.

    Args:
        package: Whose ``questions.yaml`` has the shipped sets.

    Raises:
        RequestError: If there is no such set or file, or it is in another shape.
    """
    shipped = _sets(
        files(package).joinpath("questions.yaml").read_text(encoding="utf-8"),
        "the shipped questions",
    )
    named = tuple(one for one in shipped if one.name == which)
    if named:
        return named
    path = Path(which)
    try:
        return _sets(path.read_text(encoding="utf-8-sig"), which)
    except OSError as error:
        known = ", ".join(one.name for one in shipped)
        raise RequestError(
            f"no questions {which!r} ({error.strerror}); give a YAML file, or one of {known}"
        ) from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{which} is not UTF-8") from error


def _sets(text: str, where: str) -> tuple[QuestionSet, ...]:
    try:
        content: Any = typed_yaml(text)
    except yaml.YAMLError as error:
        raise RequestError(f"{where} is not YAML: {' '.join(str(error).split())[:120]}") from error
    if isinstance(content, list) and content:
        return _listed(content, where)
    sets = content.get("sets") if isinstance(content, dict) else None
    if not isinstance(sets, dict) or not sets:
        raise RequestError(
            f"{where}: expected sets: {{NAME: {{questions: [...]}}}}, or a list of entries with id "
            "and paraphrases"
        )
    return tuple(
        _set(str(name), value if isinstance(value, dict) else {}, "questions", where)
        for name, value in sets.items()
    )


def _listed(entries: list[Any], where: str) -> tuple[QuestionSet, ...]:
    """The entries of a published evaluation, a set each."""
    found = []
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
            raise RequestError(f"{where}: entry {number} has no id")
        found.append(_set(entry["id"], entry, "paraphrases", where))
    names = [one.name for one in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RequestError(f"{where}: the id {twice!a} stands twice")
    return tuple(found)


def _set(name: str, value: dict[str, Any], field: str, where: str) -> QuestionSet:
    listed = value.get(field)
    if not isinstance(listed, list) or not listed:
        raise RequestError(f"{where}: set {name} has no list of {field}")
    if bad := [item for item in listed if not isinstance(item, str) or not item.strip()]:
        raise RequestError(f"{where}: set {name}: {bad[0]!r} is no question; quote it")
    try:
        return QuestionSet(
            name=name,
            questions=tuple(item.strip() for item in listed),
            system=value.get("system"),
            samples=value.get("samples_per_paraphrase"),
        )
    except ValidationError as error:
        raise RequestError(f"{where}: set {name}: {first_problem(error)}") from error
