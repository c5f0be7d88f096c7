"""Instructions of a grader, as versioned files whose hash stands in the grader's id.

A changed word makes another grader, whose labels stand apart.

    instructions = load_instructions("v1")         # or the path of a file of one's own
    instructions.name                              # "v1-3fa9c2d1"
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from pivotal_tokens.errors import RequestError

DEFAULT_VERSION = "v1"
TOKENS = "pivotal_tokens.judge"
"""The package whose ``prompts/`` has the instructions of judges of tokens."""

_VERSION = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Instructions:
    """What a grader is sent before the data."""

    version: str
    text: str

    @property
    def name(self) -> str:
        """``v1-3fa9c2d1``: the version, and eight hex digits of SHA-256 over the text."""
        return f"{self.version}-{hashlib.sha256(self.text.encode()).hexdigest()[:8]}"


def load_instructions(
    name: str = DEFAULT_VERSION, *, package: str = TOKENS, folder: str = "prompts"
) -> Instructions:
    """Read a version that comes with a package, or a file.

    Raises:
        RequestError: If there is neither.
    """
    shipped = files(package).joinpath(folder)
    versions = sorted(p.name.removesuffix(".md") for p in shipped.iterdir() if p.is_file())
    if name in versions:
        return Instructions(name, shipped.joinpath(f"{name}.md").read_text(encoding="utf-8"))
    path = Path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"no judge prompt {name!r}: there is {', '.join(versions)}, "
            "or give the path of a text file"
        ) from error
    if not text.strip() or not _VERSION.fullmatch(path.stem):
        raise RequestError(
            f"{path} cannot be a judge prompt: it needs text, and a name of letters and digits"
        )
    return Instructions(path.stem, text)
