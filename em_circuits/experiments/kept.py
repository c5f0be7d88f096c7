"""Results of single prompts, kept by key: rankings, scans and steering.

    results/prompts/PROMPT_ID/{rank,scan,steer}-<first 12 digits of the key>.json

A file holds what was asked and the command's own JSON, so the same question is answered again
without loading a model, `status PROMPT` lists what there is, and the viewer knows which features
were really ablated. The key is of everything the result follows from.

    asked = Asked.of(work, prompt_id, "rank", model="merged", settings=options)
    answered(work, asked, lambda: ranking.model_dump(mode="json")).result
    measured_effects(work.results, prompt_id, pair, "merged", labels)    # "2/11/431" -> logits
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from em_circuits.cache import read_json
from em_circuits.feature import Feature
from em_circuits.scoring import N_MEASURED, TO_RANK, Scoring
from em_circuits.target_request import NO_TARGET, TargetRequest
from em_circuits.workspace import Workspace
from pivotal_tokens.artefacts import content_key, sha256_file, write_json, write_provenance
from pivotal_tokens.schema import Frozen, Label, ModelName

VERSION = 1
"""Of what the results mean; a change of a formula makes the older ones another key's."""
Kind = Literal["rank", "scan", "steer"]

_ABLATED = (Scoring.MEASURED, Scoring.GRADIENT_ABLATION)
"""Rankings whose measured rows are effects of ablating one feature by itself."""


class Asked(Frozen):
    """Everything a result follows from."""

    kind: Kind
    prompt_id: str
    pair: str
    model: ModelName
    labels: dict[str, Label]
    """Token id -> label in force, on which contrast and evil mass stand."""
    settings: dict[str, Any]
    seed: int
    version: int = VERSION

    @property
    def key(self) -> str:
        return content_key(self.model_dump(mode="json"))

    @classmethod
    def of(
        cls, work: Workspace, prefix: str, kind: Kind, *, model: ModelName, settings: Mapping
    ) -> Asked:
        """A question about a stored prompt; loads the models only if the store knows no such pair.

        Raises:
            RequestError: If there is no such prompt.
        """
        prompt = work.store.prompts.get(prefix)
        settings = dict(settings)
        if settings.get("along") is not None:  # a file, whose name may come to hold another vector
            settings["along_sha256"] = sha256_file(Path(settings["along"]))
        return cls(
            kind=kind,
            prompt_id=prompt.prompt_id,
            pair=work.pair_key,
            model=model,
            labels=named_labels(work.store.labels.of(prompt.prompt_id).by_token),
            settings=settings,
            seed=work.seed,
        )


class KeptResult(Frozen):
    """A result of one prompt that is kept."""

    key: str
    at: datetime
    asked: Asked
    result: dict[str, Any]
    """The JSON of `features rank`, `steer scan` or `steer run`."""

    @property
    def said(self) -> str:
        """What it is, and its figure, on one line."""
        settings, result = self.asked.settings, self.result
        target = f" on {result['target']}" if result.get("target") else ""
        if self.asked.kind != "steer":
            n = len(result["features"])
            how = "every feature ablated" if self.asked.kind == "scan" else f"by {result['method']}"
            return f"{self.asked.kind:<5} {self.asked.model}, {how}, {n} features{target}"
        done, worlds = result["intervention"], result["worlds"]
        target = f" on {done['target']}" if done["target"] else ""
        figure = "contrast" if done["target"] else "evil_mass"
        before, after = (worlds[world][figure] for world in ("unsteered", "steered"))
        control = worlds["random_control"][figure]
        moved = "" if before is None else f": {before:.3f} -> {after:.3f}"
        beside = "" if control is None else f" (random {control['mean']:.3f})"
        what = settings.get("features") or f"{len(done['features'])} features"
        value = "" if done["value"] is None else f" {done['value']:g}"
        mode = f"{done['mode'] or 'mixed'}{value}"
        return f"steer {self.asked.model}, {what} {mode}{target}{moved}{beside}"


def named_labels(by_token: Mapping[int, Label]) -> dict[str, Label]:
    """Labels as a question names them."""
    return {str(token): label for token, label in sorted(by_token.items())}


def stored(work: Workspace, asked: Asked) -> KeptResult | None:
    """The kept answer to a question; None where there is none."""
    return _read(_path(work.results, asked))


def answered(work: Workspace, asked: Asked, compute: Callable[[], Mapping[str, Any]]) -> KeptResult:
    """The kept answer to a question, or else one that is computed and kept."""
    return stored(work, asked) or keep(work, asked, compute())


def keep(work: Workspace, asked: Asked, result: Mapping[str, Any]) -> KeptResult:
    """Keep an answer, with its provenance beside it, if the workspace keeps results."""
    kept = KeptResult(key=asked.key, at=datetime.now(UTC), asked=asked, result=dict(result))
    if not work.keeps:
        return kept
    path = _path(work.results, asked)
    write_json(path, kept.model_dump(mode="json"))
    inputs = {"prompt": asked.prompt_id, "pair": asked.pair, "labels": content_key(asked.labels)}
    write_provenance(path, inputs=inputs, config=asked.settings, seed=asked.seed, key=asked.key)
    return kept


def kept_of(results: Path, prompt_id: str) -> list[KeptResult]:
    """What is kept of a prompt, the newest first."""
    return sorted(_all(results, prompt_id), key=lambda one: one.at, reverse=True)


def rank_kept(
    work: Workspace,
    prefix: str,
    *,
    model: ModelName = "merged",
    by: Scoring = TO_RANK,
    n_measured: int = N_MEASURED,
    target: TargetRequest = NO_TARGET,
) -> dict[str, Any]:
    """The JSON of a whole ranking; kept where it ran the model. See `analyse.rank_prompt`."""

    def compute() -> dict[str, Any]:
        from em_circuits.experiments.analyse import PromptRanking, rank_prompt

        table = rank_prompt(work, prefix, model=model, by=by, n_measured=n_measured, target=target)
        return PromptRanking.of(table).model_dump(mode="json")

    if by.is_stored or target.rollouts_judged:
        return compute()  # read off a graph, or of rollouts that may have become more
    asks = target.model_dump(mode="json", include=set(TargetRequest.model_fields))
    settings = {**asks, "method": str(by), "measure": n_measured}
    asked = Asked.of(work, prefix, "rank", model=model, settings=settings)
    return answered(work, asked, compute).result


def ablate(work: Workspace, prefix: str, model: ModelName, feature: Feature | None) -> None:
    """Really ablate one feature of a prompt, or the strongest by gradient, and keep the effects.

    Raises:
        RequestError: If the prompt has no contrast, or no such position.
    """
    if feature is None:
        rank_kept(work, prefix, model=model)
        return

    def compute() -> dict[str, Any]:
        from em_circuits.experiments.analyse import steer_prompt

        return steer_prompt(work, prefix, model=model, features=str(feature)).model_dump(
            mode="json"
        )

    settings = {"features": str(feature), "mode": "ablate"}
    answered(work, Asked.of(work, prefix, "steer", model=model, settings=settings), compute)


def measured_effects(
    results: Path, prompt_id: str, pair: str, model: ModelName, by_token: Mapping[int, Label]
) -> dict[str, float]:
    """Effects on evil minus safe, in logits, of features that were really ablated by themselves.

    Args:
        results: Folder of results.
        prompt_id: The prompt.
        pair: Key of the pair.
        model: Which of the two.
        by_token: Labels in force; what was measured under others is of another contrast.

    Returns:
        ``LAYER/POSITION/ID`` -> what the feature's presence does; of several the newest.
    """
    found: dict[str, float] = {}
    labels = named_labels(by_token)
    for one in reversed(kept_of(results, prompt_id)):
        asked = one.asked
        if (asked.pair, asked.model, asked.labels) == (pair, model, labels):
            found |= _steered(one.result) if asked.kind == "steer" else _ranked(one.result)
    return found


def _ranked(result: Mapping[str, Any]) -> dict[str, float]:
    if result.get("target") or result.get("regime", "free") != "free":
        return {}
    if result["method"] not in _ABLATED:
        return {}
    return {
        str(Feature(f["layer"], f["position"], f["feature"])): f["contrast"]
        for f in result["features"]
        if f["measured"]
    }


def _steered(result: Mapping[str, Any]) -> dict[str, float]:
    done, worlds = result["intervention"], result["worlds"]
    changes = [worlds[world]["contrast"] for world in ("unsteered", "steered")]
    if done["target"] or done["regime"] != "free" or len(done["features"]) != 1 or None in changes:
        return {}
    (one,) = done["features"]
    removed = one["mode"] == "ablate" or (one["mode"] == "scale" and one["value"] == 0)
    if not removed or not isinstance(one["position"], int):
        return {}
    name = str(Feature(one["layer"], one["position"], one["feature"]))
    return {name: changes[0] - changes[1]}


def _path(results: Path, asked: Asked) -> Path:
    return results / "prompts" / asked.prompt_id / f"{asked.kind}-{asked.key[:12]}.json"


def _read(path: Path) -> KeptResult | None:
    value = read_json(path)
    try:
        kept = None if value is None else KeptResult.model_validate(value)
    except ValidationError:
        return None  # of another version, and computed again
    return kept if kept is not None and kept.key == kept.asked.key else None


def _all(results: Path, prompt_id: str) -> Iterator[KeptResult]:
    for path in (results / "prompts" / prompt_id).glob("*-*.json"):
        if not path.name.endswith(".provenance.json") and (kept := _read(path)) is not None:
            yield kept
