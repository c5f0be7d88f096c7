"""Workspace of one command or notebook: models, store and graphs under one root.

Nothing is imported or loaded before it is asked for, and nothing is written by opening a workspace
for reading.

    with Workspace(root=Path("."), models=settings) as work:
        work.pair, work.store, work.graphs
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_circuits.feature import FeatureId, parse_feature
from em_circuits.graphs.settings import AttributionSettings
from em_circuits.graphs.store import GraphStore
from em_circuits.models.fingerprint import FILE_HASHES, FingerprintCache, user_cache
from em_circuits.models.settings import PairSettings
from em_circuits.models.source import Source, locate_all
from em_circuits.object_store import require_store
from em_circuits.organisms.paths import TOY, organism_paths, require_base
from em_circuits.pieces import EVERYTHING, Portion
from em_circuits.progress import Progress, no_progress
from pivotal_tokens.artefacts import content_key, library_versions, write_json
from pivotal_tokens.errors import NoStore, RequestError
from pivotal_tokens.schema import GraphRecord, ModelName, Prompt
from pivotal_tokens.store import Store, default_url
from pivotal_tokens.store.database import DEFAULT_NAME

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from em_circuits.graphs.graph import AttributionGraph
    from em_circuits.graphs.memory import MemoryPlan
    from em_circuits.models.check import Check
    from em_circuits.models.pair import Model, ModelPair

logger = logging.getLogger(__name__)

_LOADING = "loading models (MB)"
_DENSITIES = "densities.json"
_SAME_DENSITY = 0.1
"""Shares of active features that differ by no more count as one."""
_FINGERPRINTS = "fingerprints"
"""Entry of a pair's description: name and first digits of each fingerprint."""


@dataclass
class Workspace:
    """Models, store and graphs of one command, opened when first used."""

    root: Path
    """Holds ``results/`` and ``graph_storage/``: a folder, or `object_store.artefact_root`."""
    models: PairSettings
    store_url: str | None = None
    """Store of labels and results; SQLite under ``results/`` by default."""
    seed: int = 0
    create: bool = False
    """Make the store where it is missing; a command that only reads must not."""
    keeps: bool = True
    """Keep results of single prompts under the root; what must write nothing does not."""
    n_pos: int | None = None
    """Tokens of the longest prompt that the memory plan allows for, where it is known."""
    attribution: AttributionSettings = field(default_factory=AttributionSettings)
    """Settings of attribution that the memory plan assumes."""
    steers: bool = False
    """Interventions are run and no graph is built: what the memory plan allows for instead."""
    warnings: tuple[Check, ...] = ()
    """Health checks that failed without stopping the work; recorded with every graph."""
    progress: Progress = no_progress
    """Called with how far each step of the work is."""
    portion: Portion = EVERYTHING
    """Pieces of the work that this process does."""
    running: threading.Lock = field(default_factory=threading.Lock, repr=False)
    """Lock of the models where several threads run them; not held while an endpoint is called."""
    sitting: SharedPair | None = field(default=None, repr=False)
    """Keeps the pair for the next workspace."""
    _healthy: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse what the models cannot have, before anything is loaded.

        Raises:
            RequestError: If graphs of neurons are to have what only transcoders give, or the store
                would stand in an object store.
        """
        require_store(self.root, self.store_url)
        wanted = self.attribution
        if self.models.neurons and (wanted.edges == "frozen" or "transcoder" in wanted.basis):
            what = "frozen edges" if wanted.edges == "frozen" else "transcoder features"
            raise RequestError(
                f"--transcoders none has no {what}: leave the option out (full edges among "
                "neurons), or give --transcoders"
            )

    @property
    def results(self) -> Path:
        """Folder of everything but graphs: ``results`` under the root."""
        return self.root / "results"

    @cached_property
    def store(self) -> Store:
        """The store.

        Raises:
            RequestError: If it is missing, and this command does not make one, or unreadable.
        """
        return Store.open(self.store_url or default_url(self.root), create=self.create)

    @cached_property
    def graphs(self) -> GraphStore:
        return GraphStore(self.root / "graph_storage")

    def locate(self) -> dict[str, Source]:
        """Directories of the models; see `models.source.locate_all`."""
        return locate_all(self.models)

    @cached_property
    def pair(self) -> ModelPair:
        """Both models, after a look at whether they will fit into memory."""
        if self.sitting is None:
            pair = self._load()
        else:
            fingerprints = str(sorted(self.fingerprints.items()))  # files may have changed since
            pair = self.sitting.pair(self.models, fingerprints, self._load)
        if not self.models.neurons:
            for model in pair.models:
                model.stored_activations = partial(self._stored_activations, model)
        return pair

    def announce(self, *, by_workers: bool = False) -> None:
        """Look where the models are, and say that they are about to be loaded; for commands to
        call before they import what takes seconds.

        Args:
            by_workers: Workers load them, not this process: nothing is said here.

        Raises:
            RequestError: See `locate`.
        """
        size = self._megabytes()
        if not by_workers and (self.sitting is None or self.sitting.loaded is None):
            self.progress(_LOADING, 0, size)

    def _megabytes(self) -> int:
        files = [path for one in self.locate().values() for path in one.files.values()]
        return sum(path.stat().st_size for path in files) // 1_000_000

    def _load(self) -> ModelPair:
        size = self._megabytes()
        self.progress(_LOADING, 0, size)
        from em_circuits.graphs.memory import require_fit
        from em_circuits.models.pair import ModelPair

        plan = self.plan(self.n_pos)
        logger.info("memory plan: %s", plan.describe())
        require_fit(plan)
        pair = ModelPair.load(self.models, self._file_hashes, self.progress)
        self.progress(_LOADING, size, size)
        return pair

    def _stored_activations(self, model: Model, ids: Tensor) -> tuple[Tensor, Tensor] | None:
        """Every active feature of a prompt, from its graph with full edges; None without one."""
        from em_circuits.models.text import prompt_text

        if self.__dict__.get("store") is None and not self._has_store:
            return None
        prompt_id = Prompt.of(prompt_text(model.tokenizer, ids)).prompt_id
        assert model.pair is not None
        for record in self.store.graphs.all(prompt_id, model.pair.key):
            if record.model != model.name or not self.graphs.has(record.key):
                continue
            header = self.graphs.header(record.key)
            own = [(part.basis, part.layer) for part in header.parts]
            whole = own == [("transcoder", layer) for layer in range(header.n_layers)]
            if not whole or header.n_active is not None:
                continue
            graph = self.graphs.load(record.key)
            if graph.input_ids.tolist() == ids.tolist():
                return graph.active, graph.activations
        return None

    @property
    def _has_store(self) -> bool:
        return self.store_url is not None or (self.results / DEFAULT_NAME).is_file()

    def coverage(self, nodes: Iterable[object]) -> str:
        """Line of a report: how many of the nodes it names have an explanation under the root.

        Args:
            nodes: As they are printed; what is no feature (an adapter's rank) has none.
        """
        from em_circuits.features.explain import coverage, label_of
        from em_circuits.features.neuronpedia import cached_labels

        labels = cached_labels(self.results / "neuronpedia")
        found = []
        for node in dict.fromkeys(map(str, nodes)):
            feature = None
            with contextlib.suppress(RequestError):
                name = parse_feature(node)
                feature = FeatureId(name.layer, name.feature)
            known = labels is not None and feature is not None
            found.append(label_of(self.pair.merged, labels, feature) if known and feature else None)
        return f"Explanations in the cache: {coverage(found)}."

    def plan(self, n_pos: int | None = None) -> MemoryPlan:
        """Memory that the pair, and the work on a prompt of so many tokens, will take."""
        from em_circuits.graphs.memory import PROMPT_TOKENS, memory_plan

        density = self._densities().get(self._transcoder_name)
        return memory_plan(
            self.models,
            self.locate(),
            None if self.steers else self.attribution,
            n_pos=n_pos or PROMPT_TOKENS,
            density=density,
        )

    def keep_density(self, density: float) -> None:
        """Remember which share of features fires, for the plans of later commands."""
        densities = self._densities()
        if abs(densities.get(self._transcoder_name, 0.0) / density - 1) > _SAME_DENSITY:
            with contextlib.suppress(OSError):  # a cache may be read-only
                known = densities | {self._transcoder_name: density}
                write_json(user_cache() / _DENSITIES, known)

    @property
    def _transcoder_name(self) -> str:
        return f"{self.models.base} {self.models.transcoders}"

    @staticmethod
    def _densities() -> dict[str, float]:
        try:
            found = json.loads((user_cache() / _DENSITIES).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    @cached_property
    def _file_hashes(self) -> FingerprintCache:
        return FingerprintCache(user_cache() / FILE_HASHES)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of the base, the adapter or merged model, and the transcoders; loads none."""
        return {name: self._file_hashes.of(one.files) for name, one in self.locate().items()}

    @property
    def registered_pair(self) -> str | None:
        """Key of the pair that these settings mean, if the store knows it; loads no model."""
        if self.loaded_pair is not None:
            return self.loaded_pair.key
        named = {"transcoders": self.models.transcoders, _FINGERPRINTS: _shown(self.fingerprints)}
        named["dtype"] = str(self.models.resolved_dtype())
        known = self.store.results.pairs()
        return next((key for key, about in known.items() if named.items() <= about.items()), None)

    @property
    def pair_key(self) -> str:
        """Key of the pair; loads the models only if no store knows such a pair."""
        with contextlib.suppress(NoStore):  # answers and directions need none
            if self.registered_pair is not None:
                return self.registered_pair
        return self.pair.key

    @property
    def loaded_pair(self) -> ModelPair | None:
        """Both models, if something has loaded them already."""
        return self.__dict__.get("pair")

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The models' tokenizer, without loading the models."""
        if "pair" in self.__dict__:
            return self.pair.tokenizer
        from em_circuits.models.pair import load_tokenizer

        return load_tokenizer("--base", self.locate()["base"])

    def require_healthy(self, prompt: Prompt) -> None:
        """Check the pair on a prompt, once, before anything expensive is built on it.

        Raises:
            WorkFailed: Naming the failed check.
        """
        if not self._healthy:
            known = self._remembered()
            self.warnings = self._checked(prompt) if known is None else known
            for check in self.warnings:
                logger.warning("%s: %s; %s", check.name, check.found, check.advice)
            self._healthy = True

    def _checked(self, prompt: Prompt) -> tuple[Check, ...]:
        """Checks that failed without stopping the work; remembered where none stops it."""
        from pydantic import TypeAdapter

        from em_circuits.models.check import Check
        from em_circuits.models.health import check_pair, require_healthy

        checks: list[Check] = []
        for check in check_pair(self.pair, self.pair.input_ids(prompt)):
            checks.append(check)
            self.progress("health checks", len(checks), len(checks) + 1)
            require_healthy([check])
        self.progress("health checks", len(checks), len(checks))
        failed = tuple(check for check in checks if not check.ok)
        with contextlib.suppress(OSError):  # a cache may be read-only
            write_json(self._health_file, TypeAdapter(tuple[Check, ...]).dump_python(failed))
        return failed

    def _remembered(self) -> tuple[Check, ...] | None:
        """What did not stop the work when this pair was checked before, with these libraries; None
        if it was not."""
        from pydantic import TypeAdapter, ValidationError

        from em_circuits.models.check import Check

        try:
            found = self._health_file.read_bytes()
            checks = TypeAdapter(tuple[Check, ...]).validate_json(found)
        except (OSError, ValidationError):
            return None
        return tuple(replace(check, fatal=False) for check in checks)

    @cached_property
    def _health_file(self) -> Path:
        pair = self.pair
        about = {
            "pair": pair.key,
            "backend": pair.base.backend,
            "device": str(pair.device),
            "transcoders on": self.models.transcoders_on,
            "max context": self.models.max_context,
            "libraries": library_versions(),
        }
        return user_cache() / "health" / f"{content_key(about)[:32]}.json"

    def register_pair(self) -> None:
        """Record the pair's key and what it stands for, before anything refers to it; warn where
        the same names stood for other files before."""
        pair = self.pair
        named = {"transcoders": pair.settings.transcoders}
        named |= {name: source.reference for name, source in pair.sources.items()}
        named |= {"backend": pair.base.backend, "dtype": str(pair.dtype)}
        known = self.store.results.pairs()
        description = named | {_FINGERPRINTS: _shown(self.fingerprints)}
        if known.get(pair.key) == description:
            return
        self.store.results.put_pair(pair.key, description)
        for key, about in known.items():
            if key != pair.key and named.items() <= about.items():
                changed = self._changed_since(about.get(_FINGERPRINTS, ""))
                logger.warning(
                    "the store has work of pair %s under the same names; %s: that stays apart",
                    key[:12],
                    changed or "the files were others",
                )

    def _changed_since(self, fingerprints: str) -> str:
        """Which fingerprints are others than those recorded, as a part of a sentence."""
        then = dict(one.split(" ") for one in fingerprints.split(", ") if one)
        now = {name: value[:12] for name, value in self.fingerprints.items()}
        return ", ".join(
            f"{name} was {then[name]}, is {now[name]}"
            for name in now
            if then.get(name, now[name]) != now[name]
        )

    def _other_work(self, prompt_id: str, pair: str) -> str:
        """What a prompt's stored graphs are of, where that is not the pair that is asked for."""
        records = [
            one
            for one in self.store.graphs.all(prompt_id)
            if one.pair != pair and self.graphs.has(one.key)
        ]
        if not records:
            return ""
        newest = max(records, key=lambda one: one.created_at)
        known = self.store.results.pairs().get(newest.pair, {}).get(_FINGERPRINTS)
        if known is None:  # registered by a version that kept none: the graphs have their own
            found: dict[str, str | None] = {}
            for record in records:
                header = self.graphs.header(record.key)
                if record.pair == newest.pair:
                    found["transcoders"] = header.transcoder_fingerprint
                    found["base" if record.model == "base" else "adapter"] = (
                        header.fingerprint if record.model == "base" else header.adapter_hash
                    )
            known = _shown({name: value for name, value in found.items() if value})
        changed = self._changed_since(known) or "other models, or another precision"
        return f"; those of pair {newest.pair[:12]} do not fit ({changed})"

    def graph_of(self, prompt_id: str, model: ModelName) -> AttributionGraph:
        """The newest stored graph of a prompt under this pair of models.

        Raises:
            RequestError: If there is none yet.
        """
        return self.graphs.load(self.graph_record(prompt_id, model, self.pair_key).key)

    def graph_record(
        self, prompt_id: str, model: ModelName, pair: str, *, own_target: bool = False
    ) -> GraphRecord:
        """The newest registered graph of a prompt under a pair, which need not be loaded; one with
        full edges if there is any.

        Args:
            own_target: Where there is none to next tokens, one that was built for a target of its
                own will do.

        Raises:
            RequestError: If there is none yet.
        """
        headers = {
            record: self.graphs.header(record.key)
            for record in self.store.graphs.all(prompt_id, pair)
            if record.model == model and self.graphs.has(record.key)
        }
        records = [record for record, header in headers.items() if header.target is None]
        if not records and own_target:
            records = list(headers)
        if records:
            full = [record for record in records if headers[record].edge_kind == "full"]
            return max(full or records, key=lambda record: record.created_at)
        raise RequestError(
            f"prompt {prompt_id} has no {model} graph under these models"
            f"{self._other_work(prompt_id, pair)}; run em-circuits graphs build {prompt_id}"
        )

    def close(self) -> None:
        """Close what was opened."""
        pair = self.__dict__.pop("pair", None)
        if pair is not None:
            for model in pair.models:
                model.stored_activations = None
            if self.sitting is None:
                pair.close()
        if "store" in self.__dict__:
            self.__dict__.pop("store").close()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class SharedPair:
    """The pair that the commands of one sitting share; another pair takes its place."""

    def __init__(self) -> None:
        self._of: tuple[PairSettings, str] | None = None
        self._pair: ModelPair | None = None

    @property
    def loaded(self) -> ModelPair | None:
        """The pair that is loaded; None while none is."""
        return self._pair

    def pair(
        self, settings: PairSettings, fingerprints: str, load: Callable[[], ModelPair]
    ) -> ModelPair:
        """The pair of these settings and files, loaded if another one is here."""
        if self._pair is None or self._of != (settings, fingerprints):
            self.close()  # before there are two in memory
            self._pair, self._of = load(), (settings, fingerprints)
        return self._pair

    def close(self) -> None:
        """Let the pair go."""
        if self._pair is not None:
            self._pair.close()
        self._pair = self._of = None

    def __enter__(self) -> SharedPair:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _shown(fingerprints: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value[:12]}" for name, value in sorted(fingerprints.items()))


def load_pair(
    base: str | Path | None = None,
    *,
    organism: str | None = None,
    adapter: str | Path | None = None,
    merged: str | Path | None = None,
    transcoders: str | Path | None = None,
    **settings: Any,
) -> ModelPair:
    """Load both models of a fine-tune; without arguments, the embedded organism.

    Args:
        base: A local Hugging Face directory or a hub id.
        organism: An embedded organism instead of a base: ``toy`` (the default), ``toy-down-proj``,
            ``smollm2``.
        adapter: LoRA adapter on the base.
        merged: Fine-tuned full model, instead of an adapter.
        transcoders: Transcoders of the base; ``none`` makes MLP neurons the nodes.
        settings: Further fields of `PairSettings`: device, dtype, backend, ...

    Raises:
        RequestError: If parts are missing or do not belong together.
    """
    from em_circuits.models.pair import ModelPair

    given = {"base": base, "adapter": adapter, "merged": merged, "transcoders": transcoders}
    typed = {name: None if x is None else str(x) for name, x in given.items()}
    chosen = embedded_parts(typed, organism)
    return ModelPair.load(PairSettings.model_validate({**chosen, **settings}))


def refuse_two_bases(base: str | None, organism: str | None) -> None:
    """Refuse a base beside an embedded organism, which has its own.

    Raises:
        RequestError: If both are given.
    """
    if base is not None and organism is not None:
        raise RequestError(
            f"--organism {organism} has a base of its own; leave out --base {base}, or --organism"
        )


def embedded_parts(
    given: Mapping[str, str | None], organism: str | None = None
) -> dict[str, str | None]:
    """Base, adapter or merged, transcoders; an embedded organism's where no base is given.

    Raises:
        RequestError: If a base is given without transcoders or beside an organism, or there is no
            organism of this name, or its base was not fetched.
    """
    parts = dict(given)
    refuse_two_bases(parts["base"], organism)
    if parts["base"] is None:
        paths = organism_paths(organism or TOY)
        require_base(organism or TOY, paths)
        parts["base"] = str(paths.base)
        if parts["merged"] is None:
            parts["adapter"] = parts["adapter"] or str(paths.adapter)
        parts["transcoders"] = parts["transcoders"] or str(paths.transcoders)
    if parts["transcoders"] is None:
        raise RequestError(
            "--base needs --transcoders, the per-layer transcoders of that model, or none (neurons)"
        )
    return parts
