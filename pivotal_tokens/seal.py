"""JSON texts with their checksum behind them, so that a reader notices what the disk changed.

A CRC-32 of the UTF-8 bytes, two bits a character, as sixteen characters of white space, which JSON
allows there: whoever does not know of it reads the same JSON. A text without them is of an older
version and is taken as it stands.

    unsealed(sealed('{"a": 1}'))  # '{"a": 1}'
"""

from __future__ import annotations

import zlib
from itertools import product

from pivotal_tokens.errors import WorkFailed

_WHITE = b" \t\n\r"
_LENGTH = 16
_OF_BYTE = tuple("".join(four) for four in product(_WHITE.decode(), repeat=4))
_BASE_4 = bytes.maketrans(_WHITE, b"0123")


class DamagedText(WorkFailed):
    """A text is not what was written."""


def sealed(text: str) -> str:
    """A text of JSON with its checksum."""
    return text + "".join(_OF_BYTE[byte] for byte in zlib.crc32(text.encode()).to_bytes(4, "big"))


def unsealed(text: str) -> str:
    """A text of JSON without its checksum, if it has one.

    Raises:
        DamagedText: If the checksum is of another text.
    """
    coded = text.encode("utf-8", "replace")
    seal = coded[-_LENGTH:]
    if len(coded) <= _LENGTH or seal.strip(_WHITE):
        return text
    if zlib.crc32(coded[:-_LENGTH]) != int(seal.translate(_BASE_4), 4):
        shown = ascii(text[:40])[1:-1]
        raise DamagedText(f"a stored value is not what was written ({shown}...)")
    return text[:-_LENGTH]
