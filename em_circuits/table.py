"""Feature tables: one row per feature, one column per figure, ordered by one of them.

Every ranking, scan, comparison and mean over prompts is a `FeatureTable`. Rows are features at a
position (layer, position, feature) or features wherever they fire (layer, feature); `by` says which
method gave the order, `score` names the column that `top` goes by, positive = towards evil.

    table = FeatureTable.of(features, by="gradient", score="contrast", contrast=values)
    table.top(10), table.bottom(5), table.largest(20)
    table.top(10).ablate()                  # interventions
    table.to_frame()                        # a pandas DataFrame

Where a method scores each target token apart, `targets` and `per_target` hold that matrix, and
`ranked` turns it into evil minus safe. NaN is a score that is not known: of a feature that is
active but no node of the graph. A feature in no row is inactive, and its score is exactly 0.

    scores.ranked(Contrast(evil=(431,), safe=(87,)))       # by contrast, most positive first

The terms of a `Target` are scored like tokens; the contrast is then their weighted sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from em_circuits.contrast import Contrast
from em_circuits.feature import AdapterRank, Feature, FeatureChoice, FeatureId
from em_circuits.intervention import Interventions, Mode, Unit, Where, on_each
from em_circuits.target import Target
from pivotal_tokens.errors import RequestError

if TYPE_CHECKING:
    import torch

AT_POSITION = ["layer", "position", "feature"]
ANYWHERE = ["layer", "feature"]


@dataclass(frozen=True, eq=False, repr=False)
class FeatureTable:
    """Features with their scores, in an order.

    Attributes:
        frame: Columns `layer`, `position` (unless rows are features wherever they fire), `feature`,
            then the figures; NaN where a figure is not defined.
        by: Method that gave the order, as outputs name it.
        score: Column that `top`, `bottom` and `largest` go by.
        unit: Unit of that column.
        targets: Token ids that were scored separately, (target,), if any.
        per_target: Their scores, (target, feature).
        weights: Weight of each target; ``weights @ per_target`` is the contrast.
        about: What else an output says of the table (model, prompt, labels from).
    """

    frame: pd.DataFrame
    by: str
    score: str = "contrast"
    unit: str = "logits"
    targets: np.ndarray | None = None
    per_target: np.ndarray | None = None
    weights: np.ndarray | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if list(self.frame.columns[: len(self.keys)]) != self.keys:
            raise ValueError(f"a feature table begins with {self.keys}, not {list(self.frame)[:3]}")
        if self.per_target is not None:
            assert self.targets is not None
            if self.per_target.shape != (len(self.targets), len(self.frame)):
                raise ValueError(
                    f"scores of {len(self.targets)} targets and {len(self.frame)} features have "
                    f"shape {self.per_target.shape}"
                )

    @classmethod
    def of(
        cls,
        features: torch.Tensor | np.ndarray | Sequence[Feature] | Sequence[FeatureId],
        *,
        by: str,
        score: str = "contrast",
        unit: str = "logits",
        targets: Any = None,
        per_target: Any = None,
        about: Mapping[str, Any] | None = None,
        modules: Sequence[str] | None = None,
        **columns: Any,
    ) -> FeatureTable:
        """A table of features in the given order.

        Args:
            features: (layer, position, feature) or (layer, feature) rows.
            by: Method that gave the order.
            score: Name of the column that `top`, `bottom` and `largest` go by.
            unit: Unit of that column.
            targets: Token ids that were scored separately, (target,).
            per_target: Their scores, (target, feature).
            about: What else an output says of the table.
            modules: LoRA module of each row, empty for a feature; None if no row is an adapter's.
            columns: Figures by name, each one value per feature (tensor, array or list).

        Raises:
            ValueError: If `per_target` does not fit the targets and features.
        """
        keys = _numpy(features).reshape(len(features), -1) if len(features) else None
        names = ANYWHERE if keys is not None and keys.shape[1] == 2 else AT_POSITION
        data: dict[str, Any] = {
            name: np.empty(0, np.int64) if keys is None else keys[:, i].astype(np.int64)
            for i, name in enumerate(names)
        }
        if modules is not None:
            data["module"] = np.array(modules, dtype=object)
        data |= {name: _numpy(values) for name, values in columns.items()}
        return cls(
            pd.DataFrame(data),
            by,
            score,
            unit,
            None if targets is None else _numpy(targets),
            None if per_target is None else _numpy(per_target),
            about=about or {},
        )

    @property
    def keys(self) -> list[str]:
        """The columns that name a row's feature."""
        names = AT_POSITION if "position" in self.frame else ANYWHERE
        return [*names, "module"] if "module" in self.frame else names

    @property
    def _numbers(self) -> list[str]:
        return [name for name in self.keys if name != "module"]

    @property
    def features(self) -> tuple[Any, ...]:
        """The features (`Feature`, or `FeatureId` without positions) in order; with a column
        `module`, ranks of an adapter (`AdapterRank`) among them."""
        rows = self.frame[self._numbers].itertuples(index=False, name=None)
        make: Callable[..., Any] = Feature if len(self._numbers) == 3 else FeatureId
        found = tuple(make(*map(int, row)) for row in rows)
        if "module" not in self.frame:
            return found
        modules = self.frame["module"].tolist()
        return tuple(
            AdapterRank(module, *own) if module else own
            for module, own in zip(modules, found, strict=True)
        )

    @property
    def coordinates(self) -> torch.Tensor:
        """The features as int64 rows, (feature, 3) or (feature, 2)."""
        import torch

        return torch.from_numpy(self.frame[self._numbers].to_numpy(np.int64, copy=True))

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, column: str) -> np.ndarray:
        return self.frame[column].to_numpy(copy=True)

    def __iter__(self) -> Iterator[Any]:
        """Rows as named tuples."""
        return self.frame.itertuples(index=False, name="FeatureRow")

    def take(self, rows: Any) -> FeatureTable:
        """Rows by number or by boolean mask, in that order."""
        rows = np.asarray(_numpy(rows))
        rows = rows.nonzero()[0] if rows.dtype == bool else rows.astype(np.int64)
        return replace(
            self,
            frame=self.frame.iloc[rows].reset_index(drop=True),
            per_target=None if self.per_target is None else self.per_target[:, rows],
        )

    def sorted_by(self, column: str, *, descending: bool = True) -> FeatureTable:
        """The same rows ordered by a column (stable; NaN last), which becomes the score."""
        values = self[column].astype(float)
        order = np.argsort(-values if descending else values, kind="stable")
        return replace(self.take(order), score=column)

    def top(self, n: int) -> FeatureTable:
        """The first n: the most positive, or a greedy set in the order in which it grew."""
        return self.take(np.arange(min(n, len(self))))

    def bottom(self, n: int) -> FeatureTable:
        """The n most negative, most negative first."""
        return self.take(np.argsort(self[self.score], kind="stable")[:n])

    def largest(self, n: int) -> FeatureTable:
        """The n largest by magnitude."""
        return self.take(np.argsort(-np.abs(self[self.score]), kind="stable")[:n])

    def choose(self, choice: FeatureChoice | str) -> FeatureTable:
        """The rows chosen by ``top:10``, ``bottom:5``, ``abs:20`` or names.

        Raises:
            RequestError: If a named feature is not in the table, or the text is no choice.
        """
        choice = FeatureChoice.parse(choice) if isinstance(choice, str) else choice
        if choice.by != "name":
            found = {"top": self.top, "bottom": self.bottom, "abs": self.largest}[choice.by](
                choice.count
            )
            if choice.picks and max(choice.picks) > len(found):
                raise RequestError(f"--features {choice}: there are only {len(found)} features")
            return found.take(np.array(choice.picks) - 1) if choice.picks else found
        rows: list[int] = []
        for named in choice.named:
            found = (self.frame["layer"] == named.layer) & (self.frame["feature"] == named.feature)
            if isinstance(named, Feature):
                found &= self.frame["position"] == named.position
            if not found.any():
                raise RequestError(f"feature {named} is not in this table of {len(self)} features")
            rows += found.to_numpy().nonzero()[0].tolist()
        return self.take(np.array(rows))

    def contrasted(self, contrast: Contrast | Target) -> FeatureTable:
        """The same rows with evil minus safe of the targets' scores as their score.

        The score is `evil_mean` minus `safe_mean`, which is NaN for a target without a safe side.

        Raises:
            RequestError: If no target is evil, or none safe: there is no contrast.
        """
        assert self.targets is not None and self.per_target is not None
        targets = self.targets.tolist()
        weights = contrast.over(targets).numpy()
        scores = self.per_target.astype(np.float64)
        evil, safe = weights.clip(min=0) @ scores, -weights.clip(max=0) @ scores
        contrasts = evil - safe
        if not (weights < 0).any():
            safe = np.full_like(safe, np.nan)
        frame = self.frame.assign(contrast=contrasts, evil_mean=evil, safe_mean=safe)
        return replace(self, frame=frame, score="contrast", per_target=scores, weights=weights)

    def ranked(self, contrast: Contrast | Target) -> FeatureTable:
        """Features with a known score, ordered by contrast, most positive first.

        A set that was chosen greedily (column `joined`) comes first, in the order in which it
        grew. Welch's t and Hedges' g describe the spread over tokens; they are no test.

        Raises:
            RequestError: If no target is evil, or none safe: there is no contrast.
        """
        import torch

        from em_circuits.statistics import standardised

        table = self.contrasted(contrast)
        table = table.take(~np.isnan(table["contrast"]))
        assert table.targets is not None and table.per_target is not None
        spread = standardised(
            torch.from_numpy(table.per_target), *contrast.sides(table.targets.tolist())
        )
        frame = table.frame.assign(
            welch_t=spread.t.numpy(), welch_df=spread.df.numpy(), hedges_g=spread.g.numpy()
        )
        order = np.argsort(-frame["contrast"].to_numpy(), kind="stable")
        if "joined" in frame:
            joined = frame["joined"].to_numpy()[order]
            order = order[np.argsort(joined, kind="stable")]
        figures = ["contrast", "evil_mean", "safe_mean", "activation"]
        figures += ["welch_t", "welch_df", "hedges_g", "measured"]
        return replace(table, frame=frame[[*self.keys, *figures]]).take(order)

    def from_end(self, n_pos: int) -> FeatureTable:
        """The same rows with positions counted from the end of a prompt of `n_pos` tokens."""
        return replace(self, frame=self.frame.assign(position=self.frame["position"] - n_pos))

    def by_id(self) -> FeatureTable:
        """Figures summed over the positions at which each feature fires, one row per layer and id.

        Sums run over the known scores, NaN where none is known; the column `partial` marks
        features with some unknown scores.
        """
        keys = [self.frame[name].to_numpy() for name in ANYWHERE]
        figures = self.frame.select_dtypes("floating")
        frame = figures.groupby(keys, sort=True).sum(min_count=1).rename_axis(ANYWHERE)
        unknown = figures[self.score].isna().groupby(keys)
        frame["partial"] = (unknown.any() & ~unknown.all()).to_numpy()
        per_target = None
        if self.per_target is not None:
            rows = pd.DataFrame(self.per_target.T.astype(np.float64))
            per_target = rows.groupby(keys, sort=True).sum(min_count=1).to_numpy().T
        return replace(self, frame=frame.reset_index(), per_target=per_target)

    def align(self, other: FeatureTable, *, fill: float | None = 0.0) -> pd.DataFrame:
        """Both tables' scores side by side, over the features of either.

        Args:
            other: A table over the same kind of feature (with or without positions).
            fill: Score of a feature that is in the other table only; None leaves NaN.

        Returns:
            Columns `left` and `right`, indexed by feature.
        """
        both = pd.concat(
            {
                "left": self.frame.set_index(self.keys)[self.score],
                "right": other.frame.set_index(other.keys)[other.score],
            },
            axis=1,
        ).sort_index()
        return both if fill is None else both.fillna(fill)

    def ablate(self, *, where: Where = Where.FOUND) -> Interventions:
        """Interventions that set these features' activations to 0; see `interventions`."""
        return self.interventions(Mode.ABLATE, where=where)

    def scale(self, factor: float, *, where: Where = Where.FOUND) -> Interventions:
        """Interventions that multiply these features' activations."""
        return self.interventions(Mode.SCALE, factor, where=where)

    def interventions(
        self,
        mode: Mode,
        value: float | None = None,
        *,
        unit: Unit = Unit.ABSOLUTE,
        where: Where = Where.FOUND,
    ) -> Interventions:
        """The same change of every feature of the table, once per feature and place.

        Args:
            mode: What is done.
            value: How much; see `Intervention`.
            unit: Of the value.
            where: At each feature's position in the table, or at a class of positions. Rows
                without a position are changed at every position.
        """
        if "module" in self.frame and (self.frame["module"] != "").any():
            raise RequestError(
                "ranks of an adapter are among these rows; choose features alone: "
                "table.take(table['module'] == '')"
            )
        found = ((f.layer, getattr(f, "position", None), f.feature) for f in self.features)
        return Interventions(on_each(found, mode, value, unit, where=where), by=self.by)

    def records(self) -> list[dict[str, Any]]:
        """Rows as dictionaries of plain Python values, None for NaN."""
        columns = {name: _plain(self.frame[name]) for name in self.frame}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def to_frame(self) -> pd.DataFrame:
        """A copy as a pandas DataFrame."""
        return self.frame.copy()

    def to_parquet(self, path: Path) -> None:
        """Write the frame as Parquet, with `by`, `score`, `unit` and `about` in its metadata.

        Scores of separate targets are not written.
        """
        frame = self.to_frame()
        frame.attrs = {
            "by": self.by,
            "score": self.score,
            "unit": self.unit,
            "about": dict(self.about),
        }
        frame.to_parquet(path, index=False)

    @classmethod
    def read_parquet(cls, path: Path) -> FeatureTable:
        """Read a table that `to_parquet` wrote."""
        frame = pd.read_parquet(path)
        attrs, frame.attrs = frame.attrs, {}
        return cls(frame, **attrs)

    def __repr__(self) -> str:
        first = ""
        if len(self):
            values = zip(self.features[:3], self[self.score][:3].tolist(), strict=True)
            first = ": " + ", ".join(f"{name} {value:+.3f}" for name, value in values)
            first += ", ..." if len(self) > 3 else ""
        return (
            f"FeatureTable({len(self)} features by {self.by}, {self.score} in {self.unit}{first})"
        )

    def _repr_html_(self) -> str:
        n = 20
        shown = self.frame.head(n).to_html(index=False, float_format="%.3f", border=0)
        more = f" ({n} of {len(self)} shown)" if len(self) > n else ""
        return f"<p>{len(self)} features by {self.by}{more}</p>{shown}"


def _numpy(values: Any) -> np.ndarray:
    """Tensors of any dtype and device, sequences, arrays."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        return (values.float() if str(values.dtype) == "torch.bfloat16" else values).numpy()
    return np.asarray(values)


def _plain(column: pd.Series) -> list[Any]:
    """Python values, None for NaN."""
    return [None if isinstance(v, float) and v != v else v for v in column.tolist()]
