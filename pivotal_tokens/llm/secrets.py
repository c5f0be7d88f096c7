"""API keys: where they are read, and how they are redacted from everything written.

It comes from an environment variable only, is held as a `SecretStr`, and is struck out of all that
is logged, stored or raised: as it stands, percent-encoded, in base64 at any alignment, as Python's
or JSON's repr, in hex.

    key = read_key("OPENAI_API_KEY", needed=True)
    with redacted_logging(Redactor([key])): ...
"""

from __future__ import annotations

import base64
import logging
import os
import re
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pydantic import SecretStr

from pivotal_tokens.errors import RequestError

REDACTED = "[redacted]"
_SHORTEST = 8  # a shorter key would strike out ordinary words
_NO_KEY = "none"


def read_key(name: str, *, needed: bool) -> SecretStr:
    """The key in an environment variable.

    Raises:
        RequestError: If it is needed and not there, or cannot stand in a header.
    """
    value = os.environ.get(name, "").strip()
    if not value and needed:
        raise RequestError(f"no API key: set the environment variable {name}")
    if not value.isascii() or not value.isprintable():
        raise RequestError(f"the key in {name} has characters that cannot be sent: set it again")
    return SecretStr(value or _NO_KEY)


class Redactor:
    """Strikes keys out of text, in every spelling in which they come about."""

    def __init__(self, keys: Sequence[SecretStr]) -> None:
        values = [key.get_secret_value() for key in keys]
        patterns = [p for value in values if len(value) >= _SHORTEST for p in _patterns(value)]
        self._forms = re.compile("|".join(patterns)) if patterns else None

    def __call__(self, text: str) -> str:
        """`text` without the keys."""
        return self._forms.sub(REDACTED, text) if self._forms else text


@contextmanager
def redacted_logging(redact: Redactor) -> Iterator[None]:
    """Redact keys from every log record within the block, for all handlers."""
    with _FACTORIES:
        clean = _CleanRecords(logging.getLogRecordFactory(), redact)
        logging.setLogRecordFactory(clean)
    try:
        yield
    finally:
        with _FACTORIES:
            _take_out(clean)


_FACTORIES = threading.Lock()
"""Lock of the chain of record factories: clients come and go on several threads."""


class _CleanRecords:
    """Makes records as the factory before it does, without a key."""

    def __init__(self, before: Callable[..., logging.LogRecord], redact: Redactor) -> None:
        self.before, self._redact = before, redact

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record, redact = self.before(*args, **kwargs), self._redact
        record.msg, record.args = redact(record.getMessage()), None
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = redact("".join(traceback.format_exception(*record.exc_info)).rstrip())
            record.exc_info = None
        elif record.exc_text:
            record.exc_text = redact(record.exc_text)
        if record.stack_info:
            record.stack_info = redact(record.stack_info)
        return record


def _take_out(clean: _CleanRecords) -> None:
    """Remove a factory from anywhere in the chain: blocks need not end in order."""
    top = logging.getLogRecordFactory()
    if top is clean:
        logging.setLogRecordFactory(clean.before)
    while isinstance(top, _CleanRecords):
        if top.before is clean:
            top.before = clean.before
        top = top.before


def _patterns(key: str) -> list[str]:
    """Regular expressions of a key's spellings, the longest first."""
    data = key.encode()
    forms = {data.hex(), data.hex().upper()}
    for shift in range(3):  # base64 of text around the key: what does not depend on its neighbours
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            coded = encode(b"\0" * shift + data).decode().rstrip("=")
            first = (0, 2, 3)[shift]
            last = len(coded) - (1 if (shift + len(data)) % 3 else 0)
            forms.add(coded[first:last])
    longest = sorted((form for form in forms if len(form) >= _SHORTEST), key=len, reverse=True)
    return ["".join(map(_character, key)), *map(re.escape, longest)]


def _character(character: str) -> str:
    """A character as it stands, percent-encoded, or escaped as Python, JSON or a shell do."""
    code = f"{ord(character):02x}"
    either = "".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in code)
    escaped = rf"%{either}|\\u00{either}|\\x{either}"
    plain = re.escape(character)
    return f"(?:{plain}|{escaped})" if character.isalnum() else rf"(?:\\*{plain}|{escaped})"
