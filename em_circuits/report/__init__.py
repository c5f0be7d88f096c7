"""Results as self-contained HTML pages: one file each, nothing fetched."""

from typing import TYPE_CHECKING

from pivotal_tokens.lazy import lazy

if TYPE_CHECKING:
    from em_circuits.report import (
        demo,
        edge_validation,
        evaluation,
        judges,
        lora,
        mediation,
        page,
        probes,
        responses,
        sweep,
        validation,
        validity,
    )
else:
    __getattr__, __dir__ = lazy(__name__)

__all__ = [
    "demo",
    "edge_validation",
    "evaluation",
    "judges",
    "lora",
    "mediation",
    "page",
    "probes",
    "responses",
    "sweep",
    "validation",
    "validity",
]
