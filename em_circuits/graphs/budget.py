"""How many attribution rows at once fit into the memory one may have?

rows_within(4 << 30, n_active=30_000, n_layers=16, n_pos=40, d_model=2048)  # 1024
"""

from __future__ import annotations

from pivotal_tokens.errors import RequestError

MOST_ROWS = 1024
_FLOAT = 4


def rows_within(
    max_memory: int,
    *,
    n_active: int,
    n_layers: int,
    n_pos: int,
    d_model: int,
    max_feature_nodes: int | None = None,
) -> int:
    """The largest power of two of rows per backward pass that stays within a budget.

    Args:
        max_memory: Bytes for one attribution, beside models and transcoders.
        n_active: Active features.
        n_layers: Layers of the model.
        n_pos: Tokens of the prompt.
        d_model: Width of the residual stream.
        max_feature_nodes: Feature rows that are kept; None for every active feature.

    Returns:
        1 to 1,024.

    Raises:
        RequestError: If the rows to be kept alone do not fit.
    """
    fixed = fixed_bytes(
        n_active=n_active,
        n_layers=n_layers,
        n_pos=n_pos,
        d_model=d_model,
        max_feature_nodes=max_feature_nodes,
    )
    n_sources = n_active + (n_layers + 1) * n_pos
    # Gradients at every layer, as many again on the way; a row whole, in its place, and between.
    each = _FLOAT * (2 * (n_layers + 4) * n_pos * d_model + 3 * n_sources)
    rows = (max_memory - fixed) // each
    if rows < 1:
        needed = (fixed + each) / 1e9
        raise RequestError(
            f"--max-memory {max_memory / 1e9:.2f} GB is too little: this prompt's attribution "
            f"takes {needed:.2f} GB; allow that much or ask for fewer --max-features"
        )
    return min(MOST_ROWS, 1 << rows.bit_length() - 1)


def fixed_bytes(
    *, n_active: int, n_layers: int, n_pos: int, d_model: int, max_feature_nodes: int | None
) -> int:
    """What an attribution takes whatever its batch size.

    Encoder and decoder rows of the active features; kept rows, of whose sources half lie in layers
    below, once as they come and once packed.
    """
    n_sources = n_active + (n_layers + 1) * n_pos
    kept = min(max_feature_nodes or n_active, n_active)
    vectors = 2 * n_active * d_model
    rows = kept * n_sources
    return _FLOAT * (vectors + rows)
