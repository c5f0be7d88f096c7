"""Feature names: the only parser and printer of ``L/POS/ID``, ``L/-1/ID`` and ``L/ID``.

A `Feature` is one feature at one position of a prompt, a `FeatureId` the same feature wherever it
fires. Both are plain tuples, so they compare with and unpack like (layer, position, id). Positions
below 0 count from the end of a prompt, as in Python.

    str(Feature(2, 11, 431)) == "2/11/431"
    parse_feature("2/431") == FeatureId(2, 431)
    FeatureChoice.parse("top:10")              # also bottom:5, abs:20, 2/11/431,3/-1/7
    FeatureChoice.parse("top:[2,7]")           # the second and the seventh
    FeatureChoice.parse("2/11/431=5,3/-1/7=0") # each with a value of its own
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pivotal_tokens.errors import RequestError

_NAME = re.compile(r"(\d{1,9})/(?:(-?\d{1,9})/)?(\d{1,9})", re.ASCII)
_MODULE = re.compile(r"[a-z][a-z0-9_]{0,40}", re.ASCII)
_RANKED = re.compile(r"(top|bottom|abs):(?:(\d{1,9})|\[(\d{1,6}(?:,\d{1,6})*)\])", re.ASCII)


class FeatureId(NamedTuple):
    """A feature of one layer's transcoder, wherever it fires; printed as ``LAYER/ID``."""

    layer: int
    feature: int

    def __str__(self) -> str:
        return f"{self.layer}/{self.feature}"


class Feature(NamedTuple):
    """A feature at one position of a prompt; printed as ``LAYER/POSITION/ID``.

    Positions count from 0, the beginning-of-sequence token; below 0 from the end, as in Python.
    """

    layer: int
    position: int
    feature: int

    def __str__(self) -> str:
        return f"{self.layer}/{self.position}/{self.feature}"

    @property
    def id(self) -> FeatureId:
        """The feature without its position."""
        return FeatureId(self.layer, self.feature)

    def at(self, n_pos: int) -> Feature:
        """The same with its position counted from the start of a prompt of `n_pos` tokens.

        Raises:
            RequestError: If the prompt has no such position.
        """
        if not -n_pos <= self.position < n_pos:
            raise RequestError(
                f"feature {self}: the prompt has positions 0 to {n_pos - 1} (or -1 to -{n_pos})"
            )
        return self if self.position >= 0 else self._replace(position=self.position + n_pos)

    @classmethod
    def parse(cls, text: str) -> Feature:
        """Read ``L/POS/ID``.

        Raises:
            RequestError: If it is not of that form.
        """
        found = parse_feature(text)
        if isinstance(found, FeatureId):
            raise RequestError(f"{text!r} has no position; write LAYER/POSITION/ID")
        return found


class AdapterRank(NamedTuple):
    """A rank of one LoRA module at one position; printed as ``MODULE:LAYER/POSITION/RANK``."""

    module: str
    layer: int
    position: int
    rank: int

    def __str__(self) -> str:
        return f"{self.module}:{self.layer}/{self.position}/{self.rank}"

    @classmethod
    def parse(cls, text: str) -> AdapterRank:
        """Read ``down_proj:1/11/0``.

        Raises:
            RequestError: If it is not of that form.
        """
        module, _, place = text.strip().partition(":")
        if not _MODULE.fullmatch(module):
            raise RequestError(f"{text!r} is no adapter rank; write MODULE:LAYER/POSITION/RANK")
        return cls(module, *Feature.parse(place))


def parse_feature(text: str) -> Feature | FeatureId:
    """Read ``L/POS/ID`` as a `Feature`, ``L/ID`` as a `FeatureId`.

    Raises:
        RequestError: If it is neither.
    """
    found = _NAME.fullmatch(text.strip())
    if found is None:
        raise RequestError(
            f"{text!r} is no feature; write LAYER/POSITION/ID, or LAYER/ID for every position"
        )
    layer, position, feature = found.groups()
    if position is None:
        return FeatureId(int(layer), int(feature))
    return Feature(int(layer), int(position), int(feature))


def parse_node(text: str) -> AdapterRank | Feature | FeatureId:
    """Read the name of a graph's node, whatever it is of.

    Raises:
        RequestError: If it is none.
    """
    return AdapterRank.parse(text) if ":" in text else parse_feature(text)


@dataclass(frozen=True)
class FeatureChoice:
    """A request for features: by their rank in a table, or by name.

    Attributes:
        by: ``top`` (most positive), ``bottom`` (most negative), ``abs`` (largest magnitude) or
            ``name``.
        count: How many.
        named: The features, where they are named.
        picks: Of the first `count`, only those of these ranks, from 1; empty for all.
        values: Of each that is named its own value; None where it has none.
    """

    by: Literal["top", "bottom", "abs", "name"]
    count: int
    named: tuple[Feature | FeatureId, ...] = ()
    picks: tuple[int, ...] = ()
    values: tuple[float | None, ...] = ()

    @classmethod
    def parse(cls, text: str) -> FeatureChoice:
        """Read a ``--features`` argument: ``top:N`` (``top:[2,7]``), ``bottom:N``, ``abs:N``, or
        names with commas, each with a value of its own where one is written (``2/11/431=5``).

        Raises:
            RequestError: If it has none of the forms, or asks for no feature.
        """
        ranked = _RANKED.fullmatch(re.sub(r"\s", "", text))
        if ranked:
            picks = tuple(map(int, ranked[3].split(","))) if ranked[3] else ()
            count = max(picks) if picks else int(ranked[2])
            if min(picks, default=count) < 1:
                raise RequestError(f"--features {text!r} asks for no feature; ranks begin at 1")
            return cls(ranked[1], count, picks=tuple(dict.fromkeys(picks)))  # type: ignore[arg-type]
        try:
            parts = [part.partition("=") for part in text.split(",")]
            named = tuple(parse_feature(name) for name, _, _ in parts)
            values = tuple(float(value) if equals else None for _, equals, value in parts)
        except (RequestError, ValueError) as error:
            raise RequestError(
                f"--features {text!r}: give top:N, bottom:N, abs:N, top:[2,7] or "
                "LAYER/POSITION/ID,... (each with its value: 2/11/431=5)"
            ) from error
        given = any(value is not None for value in values)
        return cls("name", len(named), named, values=values if given else ())

    @property
    def needs_ranking(self) -> bool:
        """Whether the features are chosen from a table of scores."""
        return self.by != "name"

    def __str__(self) -> str:
        if self.by == "name" and self.values:
            pairs = zip(self.named, self.values, strict=True)
            return ",".join(f"{n}" if v is None else f"{n}={v:g}" for n, v in pairs)
        if self.by == "name":
            return ",".join(map(str, self.named))
        if self.picks:
            return f"{self.by}:[{','.join(map(str, self.picks))}]"
        return f"{self.by}:{self.count}"
