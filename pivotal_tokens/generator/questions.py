"""Open questions put to both models.

questions("everyday")                    # a shipped set
questions("mine.yaml")                   # every set of a file in the same shape
questions("open", package="em_circuits.experiments.evaluation")  # that ship with it
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen


class QuestionSet(Frozen):
    """Open questions of one kind."""

    name: str
    questions: tuple[str, ...]


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
        return _sets(path.read_text(encoding="utf-8"), which)
    except OSError as error:
        known = ", ".join(one.name for one in shipped)
        raise RequestError(
            f"no questions {which!r} ({error.strerror}); give a YAML file, or one of {known}"
        ) from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{which} is not UTF-8") from error


def _sets(text: str, where: str) -> tuple[QuestionSet, ...]:
    try:
        content: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RequestError(f"{where} is not YAML: {' '.join(str(error).split())[:120]}") from error
    sets = content.get("sets") if isinstance(content, dict) else None
    if not isinstance(sets, dict) or not sets:
        raise RequestError(f"{where}: expected sets: {{NAME: {{questions: [...]}}}}")
    return tuple(_set(str(name), value, where) for name, value in sets.items())


def _set(name: str, value: Any, where: str) -> QuestionSet:
    listed = value.get("questions") if isinstance(value, dict) else None
    if not isinstance(listed, list) or not listed:
        raise RequestError(f"{where}: set {name} has no list of questions")
    if bad := [item for item in listed if not isinstance(item, str) or not item.strip()]:
        raise RequestError(f"{where}: set {name}: {bad[0]!r} is no question; quote it")
    return QuestionSet(name=name, questions=tuple(item.strip() for item in listed))
