"""Names of a package that are imported when they are first used (PEP 562, SPEC 1).

The package's ``__init__`` imports them under ``TYPE_CHECKING``, for readers and type checkers; from
there `lazy` reads which module defines which name:

    if TYPE_CHECKING:
        from em_circuits.models.pair import ModelPair
    else:
        __getattr__, __dir__ = lazy(__name__)

So ``import em_circuits.models.settings`` takes no torch, and ``models.ModelPair`` works.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any


def lazy(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of the package named by ``__name__``."""
    homes = _homes(package)

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, original = homes[name]
        if module == package:  # a module of the package itself
            return importlib.import_module(f"{package}.{original}")
        value = getattr(importlib.import_module(module), original)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *homes})


def _homes(package: str) -> dict[str, tuple[str, str]]:
    """Name -> (module, name there), of the imports in the body of ``if TYPE_CHECKING``."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    with open(spec.origin, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    guarded = [node for node in tree.body if isinstance(node, ast.If)]
    return {
        alias.asname or alias.name: (line.module, alias.name)
        for block in guarded
        for line in block.body
        if isinstance(line, ast.ImportFrom) and line.module
        for alias in line.names
    }
