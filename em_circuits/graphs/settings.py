"""Settings of attribution: which graph comes out, and in what memory.

The command line makes its options from them, so nothing heavy is imported here.
"""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from pivotal_tokens.schema import Frozen

SelectBy = Literal["probability", "contrast"]
ATTRIBUTION_VERSION = 1
"""Raised whenever the same request would give other numbers, beyond rounding; part of every key."""


class AttributionSettings(Frozen):
    """Settings of attribution; all but `batch_size` and `max_memory` are part of a graph's key."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    top_k: int = Field(default=10, ge=1)
    """Tokens of each model whose union becomes the logit nodes of both graphs."""
    max_feature_nodes: int | None = Field(default=8192, ge=1)
    """Feature nodes per graph; None keeps every active feature."""
    select_by: SelectBy = "probability"
    """What weighs the choice of feature nodes: each target's probability, or 1/n of its label's
    side (evil and safe alike; unsure and unlabelled targets weigh nothing)."""
    batch_size: int = Field(default=128, ge=1)
    """Attribution rows per backward pass, at most; not part of the key."""
    max_memory: int | None = Field(default=None, ge=1)
    """Bytes that an attribution may take beside the models; a smaller batch size follows. Not part
    of the key."""
    update_rows: Literal[256, 512, 1024, 2048] = 1024
    """Rows between two rankings of what to attribute next. circuit-tracer counts them in batches,
    so that its batch size changes which features a truncated graph has; here it does not."""
