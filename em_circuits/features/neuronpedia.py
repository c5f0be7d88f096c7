"""Labels that Neuronpedia has for features, cached on disk.

    source = LabelSource.parse("llama3.2-1b/{layer}-transcoder")
    labels = NeuronpediaLabels(source, cache=Path("results/neuronpedia"), online=False)
    labels.of(FeatureId(2, 299))          # "advice to avoid risk", or None

The API is ``GET https://www.neuronpedia.org/api/feature/{model}/{source}/{index}``
(docs.neuronpedia.org/api-and-data/api), whose answer lists explanations; `best_explanation` takes
one of them by kind, score and length. An answer is kept in ``cache/MODEL/SOURCE/INDEX.json``,
"none" too: a run repeats without a network.
"""

from __future__ import annotations

import json
import math
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_circuits.feature import FeatureId
from pivotal_tokens.artefacts import write_json
from pivotal_tokens.errors import RequestError, WorkFailed

ADDRESS = "https://www.neuronpedia.org"
TIMEOUT = 20.0
"""Seconds an answer may take."""

_NAME = re.compile(r"[A-Za-z0-9{][A-Za-z0-9._{}-]*")


@dataclass(frozen=True)
class LabelSource:
    """Which model and which source per layer the labels are of."""

    model: str
    source: str
    """With ``{layer}`` for the layer number."""

    @classmethod
    def parse(cls, text: str) -> LabelSource:
        """Read ``MODEL/SOURCE``, the source with ``{layer}`` in it.

        Raises:
            RequestError: If it has another form.
        """
        model, slash, source = text.partition("/")
        if not slash or "{layer}" not in source or not all(map(_NAME.fullmatch, (model, source))):
            raise RequestError(
                f"--neuronpedia {text!r}: give MODEL/SOURCE with {{layer}} in the source, such as "
                "gemma-2-2b/{layer}-gemmascope-transcoder-16k"
            )
        return cls(model, source)

    def path(self, feature: FeatureId) -> str:
        """MODEL/SOURCE/INDEX of one feature."""
        layer, index = feature
        return f"{self.model}/{self.source.replace('{layer}', str(layer))}/{index}"


@dataclass(frozen=True)
class NeuronpediaLabels:
    """Labels from the cache and, when online, from the site."""

    source: LabelSource
    cache: Path
    online: bool = True
    address: str = ADDRESS

    def of(self, feature: FeatureId) -> str | None:
        """The label of a feature; None where nobody wrote one, or it is not in the cache.

        Raises:
            WorkFailed: If the site cannot be reached.
            RequestError: If a cached file is not readable.
        """
        path = self._file(feature)
        if path.is_file():
            return _read(path)
        if not self.online:
            return None
        label = self._fetch(feature)
        source = f"{self.source.model}/{self.source.source}"
        write_json(path, {"feature": self.source.path(feature), "label": label, "source": source})
        return label

    def known(self, layer: int) -> Iterator[tuple[int, str]]:
        """(feature id, label) of every labelled feature of a layer in the cache, by id."""
        folder = self._file(FeatureId(layer, 0)).parent
        for path in sorted(folder.glob("*.json"), key=lambda p: (len(p.stem), p.stem)):
            label = _read(path)
            if label is not None and path.stem.isdecimal():
                yield int(path.stem), label

    def _file(self, feature: FeatureId) -> Path:
        return self.cache / f"{self.source.path(feature)}.json"

    def _fetch(self, feature: FeatureId) -> str | None:
        url = f"{self.address}/api/feature/{self.source.path(feature)}"
        request = urllib.request.Request(url, headers={"User-Agent": "em-circuits"})
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                record = json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise WorkFailed(f"{url} answered {error.code}; try later, or --cache-only") from error
        except (urllib.error.URLError, TimeoutError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise WorkFailed(
                f"{self.address} could not be reached ({reason}); use --cache-only"
            ) from error
        return best_explanation((record or {}).get("explanations") or [])


def cached_labels(cache: Path) -> NeuronpediaLabels | None:
    """The labels of a cache that holds those of one source; None where it holds none, or several.

    Raises:
        RequestError: If a cached file is not readable.
    """
    first = (next(folder.glob("*.json"), None) for folder in sorted(cache.glob("*/*")))
    named = {_record(path).get("source") for path in first if path is not None} - {None}
    if len(named) != 1:
        return None
    return NeuronpediaLabels(LabelSource.parse(str(named.pop())), cache, online=False)


KINDS = ("oai_token-act-pair", "eleuther_acts_top20", "np_max-act-logits", "np_acts-logits-general")
"""How explanations were written, the preferred first; others come after."""
LONGEST = 200
"""Characters of an explanation that can stand in a table; longer ones come after all others."""


def best_explanation(explanations: Sequence[Any]) -> str | None:
    """The text of the explanation to show: short enough, of the best scored, of a preferred kind.

    A measured score goes before none, and before the kind: it says how well the text predicts
    where the feature fires. Ties go to the shorter, then to the earlier. What is none is left out.
    """

    def rank(one: Mapping[str, Any]) -> tuple[bool, float, int, int]:
        scores = [s.get("value") for s in one.get("scores") or [] if isinstance(s, dict)]
        known = [float(s) for s in scores if isinstance(s, int | float)]
        kind = one.get("typeName")
        return (
            len(one["description"].strip()) > LONGEST,
            -max(known, default=-math.inf),
            KINDS.index(kind) if kind in KINDS else len(KINDS),
            len(one["description"].strip()),
        )

    usable = [
        one
        for one in explanations
        if isinstance(one, dict)
        and isinstance(one.get("description"), str)
        and one["description"].strip()
    ]
    return min(usable, key=rank)["description"].strip() if usable else None


def _read(path: Path) -> str | None:
    label: str | None = _record(path)["label"]
    return label


def _record(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        record["label"]
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(f"{path} is not a cached label: remove it ({error})") from error
    return record
