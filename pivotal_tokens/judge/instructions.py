"""What is a judge told, and under which version?

The texts are files under ``prompts/``; their content's hash stands in the judge's id, so that a
changed word makes another judge whose labels are kept apart.

    told = load_instructions("v1")                 # or the path of a file of one's own
    told.version, told.content_hash
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from pivotal_tokens.errors import RequestError

DEFAULT_VERSION = "v1"
_VERSION = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Instructions:
    """A judge's instructions."""

    version: str
    text: str

    @property
    def content_hash(self) -> str:
        """First eight hex digits of SHA-256 over the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:8]

    @property
    def name(self) -> str:
        """``v1-3fa9c2d1``."""
        return f"{self.version}-{self.content_hash}"


PACKAGE = "pivotal_tokens.judge"


def versions(package: str = PACKAGE) -> tuple[str, ...]:
    """The versions that come with a package."""
    folder = files(package).joinpath("prompts")
    return tuple(sorted(p.name.removesuffix(".md") for p in folder.iterdir()))


def load_instructions(name: str = DEFAULT_VERSION, *, package: str = PACKAGE) -> Instructions:
    """Read a version that comes with the package, or a file.

    Args:
        name: Of the version, or the file's path.
        package: Whose ``prompts/`` has the versions.

    Raises:
        RequestError: If there is neither.
    """
    if name in versions(package):
        source = files(package).joinpath("prompts", f"{name}.md")
        return Instructions(name, source.read_text(encoding="utf-8"))
    path = Path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(versions(package))
        raise RequestError(
            f"no judge prompt {name!r}: there is {known}, or give the path of a text file"
        ) from error
    if not text.strip() or not _VERSION.fullmatch(path.stem):
        raise RequestError(
            f"{path} cannot be a judge prompt: it needs text, and a name of letters and digits"
        )
    return Instructions(path.stem, text)
