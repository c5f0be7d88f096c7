"""Errors of libraries about a user's files, as one line: what failed, why, what to do.

with foreign_errors("--base models/base cannot be loaded"):
    AutoModelForCausalLM.from_pretrained("models/base")
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from types import FrameType
from typing import Any

from pivotal_tokens.errors import EmCircuitsError, RequestError

_TOKENIZERS = "transformers.tokenization_utils_base"
"""The logger of that warning."""


@contextlib.contextmanager
def foreign_errors(what: str, advice: str = "") -> Iterator[None]:
    """Turn what a library raises while it reads a file into a `RequestError`.

    Args:
        what: What failed; names the option and the file or directory.
        advice: What to do, behind the library's reason.

    Raises:
        RequestError: In place of the library's error; the project's own pass as they are.
    """
    from huggingface_hub.errors import StrictDataclassError
    from jinja2 import TemplateError
    from safetensors import SafetensorError

    known = (
        ArithmeticError,
        AttributeError,
        ImportError,
        LookupError,
        MemoryError,
        OSError,
        RuntimeError,
        SafetensorError,
        StrictDataclassError,
        TemplateError,
        TypeError,
        ValueError,
        pickle.UnpicklingError,
    )
    try:
        yield
    except EmCircuitsError:
        raise
    except BaseException as error:
        # tokenizers raises plain `Exception` for a damaged file, and a panic of its Rust code is no
        # `Exception` at all.
        plain = type(error) is Exception or type(error).__name__ == "PanicException"
        if not plain and not isinstance(error, known):
            raise
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise RequestError(f"{what}: {detail}{advice}") from error


@contextlib.contextmanager
def quiet_transformers(model_type: str = "") -> Iterator[None]:
    """Without transformers' bars, beside which stand this project's own, and without its warning
    about the tokenizers of Mistral's models, which 4.57.3 gives of any with a large vocabulary.

    Args:
        model_type: Of the configuration, as "llama"; Mistral's keep the warning.
    """
    from transformers.utils import logging as theirs

    def holds(record: logging.LogRecord) -> bool:
        about_mistral = any(name in model_type for name in ("istral", "voxtral", "pixtral"))
        return about_mistral or "fix_mistral_regex" not in record.getMessage()

    says, shown = theirs.get_logger(_TOKENIZERS), theirs.is_progress_bar_enabled()
    says.addFilter(holds)
    if shown:
        theirs.disable_progress_bar()
    try:
        yield
    finally:
        says.removeFilter(holds)
        if shown:
            theirs.enable_progress_bar()


def has_circuit_tracer() -> bool:
    """Whether circuit-tracer is installed, which frozen edges and ``.pt`` files need."""
    return find_spec("circuit_tracer") is not None


def require_circuit_tracer(what: str) -> None:
    """Refuse what only circuit-tracer does, where it is not installed.

    Args:
        what: In the plural.

    Raises:
        RequestError: Naming what brings it.
    """
    if not has_circuit_tracer():
        raise RequestError(
            f"{what} need circuit-tracer, which is not installed: pip install "
            "'em-circuits[frozen]' (it holds transformers at 4); full edges need none"
        )


@contextlib.contextmanager
def time_limit(seconds: float, what: str) -> Iterator[None]:
    """End Python code that somebody else wrote, in this thread, after so many seconds of CPU.

    Each of its lines looks at the clock, which a signal could do in the main thread alone. A single
    operation in C that takes long (``10 ** 10 ** 9``) is not interrupted. What the thread waits for
    on a busy machine does not count.

    Raises:
        TimeoutError: ``what`` and the limit.
    """
    deadline, before = time.thread_time() + seconds, sys.gettrace()

    def watch(_frame: FrameType, _event: str, _argument: Any) -> Any:
        if time.thread_time() > deadline:
            raise TimeoutError(f"{what} {seconds:g} s")
        return watch

    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)
