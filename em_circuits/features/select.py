"""Which features does ``--features`` mean?

parse_features("top:10")            # most positive contrast
parse_features("bottom:5")          # most negative
parse_features("abs:20")            # largest magnitude
parse_features("2/11/431,3/11/7")   # layer/position/feature id
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from em_circuits.features.rank import Ranking
from pivotal_tokens.errors import RequestError

Coordinate = tuple[int, int, int]
"""(layer, position, feature id)."""

_RANKED = re.compile(r"(top|bottom|abs):(\d+)")
_PLACE = re.compile(r"(\d+)/(\d+)/(\d+)")


@dataclass(frozen=True)
class FeatureChoice:
    """A choice of features, by rank or by name."""

    by: Literal["top", "bottom", "abs", "name"]
    count: int
    named: tuple[Coordinate, ...] = ()

    @property
    def needs_ranking(self) -> bool:
        return self.by != "name"

    def resolve(self, ranking: Ranking | None) -> tuple[Coordinate, ...]:
        """The coordinates that are meant, the first the most important.

        Args:
            ranking: Needed unless the features are named.
        """
        if self.by == "name":
            return self.named
        assert ranking is not None
        chosen = {"top": ranking.top, "bottom": ranking.bottom, "abs": ranking.largest}[self.by]
        return tuple((f.layer, f.position, f.feature) for f in chosen(self.count))


def parse_features(text: str) -> FeatureChoice:
    """Read a ``--features`` argument.

    Raises:
        RequestError: If it has none of the four forms, or asks for none.
    """
    if ranked := _RANKED.fullmatch(text.strip()):
        by, count = ranked[1], int(ranked[2])
        if count < 1:
            raise RequestError(f"--features {text!r} asks for no feature")
        return FeatureChoice(by, count)  # type: ignore[arg-type]
    places = [_PLACE.fullmatch(part.strip()) for part in text.split(",")]
    if not text.strip() or not all(places):
        raise RequestError(
            f"--features {text!r}: give top:N, bottom:N, abs:N or LAYER/POSITION/ID,..."
        )
    named = tuple((int(p[1]), int(p[2]), int(p[3])) for p in places if p)
    return FeatureChoice("name", len(named), named)
