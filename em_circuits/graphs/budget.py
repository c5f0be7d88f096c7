"""How many attribution rows at once fit into the memory one may have?

rows_within(4 << 30, n_active=30_000, n_layers=16, n_pos=40, d_model=2048, n_heads=32)  # 1024
"""

from __future__ import annotations

from em_circuits.graphs.builder import ROW_BYTES
from em_circuits.graphs.frozen import PATTERN_BYTES
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
    n_heads: int,
    max_feature_nodes: int | None = None,
) -> int:
    """The largest power of two of rows at once that stays within a budget.

    Args:
        max_memory: Bytes for one attribution, beside models and transcoders.
        n_active: Active features.
        n_layers: Layers of the model.
        n_pos: Tokens of the prompt.
        d_model: Width of the residual stream.
        n_heads: Attention heads.
        max_feature_nodes: Feature rows that are kept; None for every active feature.

    Returns:
        1 to 1,024.

    Raises:
        RequestError: If what does not depend on the batch does not fit with a single row.
    """
    sizes = {"n_active": n_active, "n_layers": n_layers, "n_pos": n_pos, "d_model": d_model}
    fixed = fixed_bytes(**sizes, n_heads=n_heads, max_feature_nodes=max_feature_nodes)
    each = row_bytes(**sizes)
    rows = (max_memory - fixed) // each
    if rows < 1:
        needed = (fixed + each) / 1e9
        raise RequestError(
            f"--max-memory {max_memory / 1e9:.2f} GB is too little: this prompt's attribution "
            f"takes {needed:.2f} GB; allow that much or ask for fewer --max-features"
        )
    return min(MOST_ROWS, 1 << rows.bit_length() - 1)


def row_bytes(*, n_active: int, n_layers: int, n_pos: int, d_model: int) -> int:
    """What each row at once takes: its gradient of the stream, what passes through attention, the
    values of a head group; then the row itself, transposed, and as it is kept."""
    n_sources = n_active + (n_layers + 1) * n_pos
    return _FLOAT * (4 * n_pos * d_model + 3 * n_sources)


def fixed_bytes(
    *,
    n_active: int,
    n_layers: int,
    n_pos: int,
    d_model: int,
    n_heads: int,
    max_feature_nodes: int | None,
) -> int:
    """What an attribution takes whatever its batch size.

    Encoder and decoder rows of the active features; attention patterns, those of one layer several
    times over while they are made; kept rows, as far as they stay in memory, and packed; what every
    layer reads, writes and misses.
    """
    n_sources = n_active + (n_layers + 1) * n_pos
    kept = min(max_feature_nodes or n_active, n_active)
    vectors = 2 * n_active * d_model
    pattern = n_heads * n_pos**2
    patterns = min(n_layers * pattern, PATTERN_BYTES // _FLOAT) + 4 * pattern
    share = 0.5  # of the sources, that lie in layers below and at positions before
    rows = min(int(share * kept * n_sources), ROW_BYTES // _FLOAT)
    packed = int(share * kept * (kept + (n_layers + 1) * n_pos))
    streams = 6 * n_layers * n_pos * d_model
    return _FLOAT * (vectors + patterns + rows + packed + streams)
