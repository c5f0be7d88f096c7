"""Errors of libraries about a user's files, as one line: what failed, why, what to do.

with foreign_errors("--base models/base cannot be loaded"):
    AutoModelForCausalLM.from_pretrained("models/base")
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from importlib.util import find_spec

from pivotal_tokens.errors import EmCircuitsError, RequestError


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

    try:
        yield
    except EmCircuitsError:
        raise
    except (
        ArithmeticError,
        AttributeError,
        ImportError,
        LookupError,
        OSError,
        RuntimeError,
        SafetensorError,
        StrictDataclassError,
        TemplateError,
        TypeError,
        ValueError,
        pickle.UnpicklingError,
    ) as error:
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise RequestError(f"{what}: {detail}{advice}") from error


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
