"""Next-token lists and a clock to test with."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from pivotal_tokens.schema import ModelName, NextTokens, TokenScore


def next_tokens(
    model: ModelName,
    probabilities: Mapping[int, float],
    top_k: int = 10,
    texts: Mapping[int, str] | None = None,
) -> NextTokens:
    """Ranks go by probability, then token id; a probability of -p stands outside the top k."""
    listed = sorted((-p, token) for token, p in probabilities.items() if p >= 0)
    others = sorted((p, token) for token, p in probabilities.items() if p < 0)
    ranked = [(token, -p, rank) for rank, (p, token) in enumerate(listed, start=1)]
    ranked += [(token, -p, 100 + rank) for rank, (p, token) in enumerate(others)]
    return NextTokens(
        model=model,
        fingerprint=f"{model}-model",
        top_k=top_k,
        tokens=tuple(
            TokenScore(
                token_id=token,
                text=(texts or {}).get(token, f" w{token}"),
                logit=-float(rank),
                probability=p,
                rank=rank,
            )
            for token, p, rank in ranked
        ),
    )


class Clock:
    """A clock that stands still until moved."""

    def __init__(self) -> None:
        self.time = datetime(2026, 11, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.time += timedelta(microseconds=1)  # no two moments are the same
        return self.time

    def forward(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)
