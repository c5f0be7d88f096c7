"""Text columns that notice when the disk changed them: JSON with its checksum behind it.

A CRC-32 of the UTF-8 bytes, two bits a character, as sixteen characters of white space, which JSON
allows there: whoever reads the column without this file reads the same JSON. A text without them is
of an older store and is taken as it stands.

    Column("payload", SealedText, nullable=False)
    unsealed(sealed('{"a": 1}'))  # '{"a": 1}'
"""

from __future__ import annotations

import zlib
from itertools import product
from typing import Any

from sqlalchemy import String, Text
from sqlalchemy.types import TypeDecorator, TypeEngine

from pivotal_tokens.errors import WorkFailed

_WHITE = " \t\n\r"
_LENGTH = 16
_OF_BYTE = tuple("".join(four) for four in product(_WHITE, repeat=4))
_BASE_4 = str.maketrans(_WHITE, "0123")


class DamagedText(WorkFailed):
    """A stored text is not what was written."""


def sealed(text: str) -> str:
    """A text of JSON with its checksum."""
    return text + "".join(_OF_BYTE[byte] for byte in zlib.crc32(text.encode()).to_bytes(4, "big"))


def unsealed(text: str) -> str:
    """A text of JSON without its checksum, if it has one.

    Raises:
        DamagedText: If the checksum is of another text.
    """
    seal = text[-_LENGTH:]
    if len(text) <= _LENGTH or seal.strip(_WHITE):
        return text
    inner = text[:-_LENGTH]
    if zlib.crc32(inner.encode()) != int(seal.translate(_BASE_4), 4):
        shown = ascii(inner[:40])[1:-1]
        raise DamagedText(f"a stored value is not what was written ({shown}...)")
    return inner


class SealedText(TypeDecorator[str]):
    """JSON that is sealed when it is written, and checked when it is read."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        return None if value is None else sealed(value)

    def process_result_value(self, value: str | None, dialect: Any) -> str | None:
        return None if value is None else unsealed(value)

    def coerce_compared_value(self, op: Any, value: Any) -> TypeEngine[Any]:
        return String()  # what is searched for has no seal
