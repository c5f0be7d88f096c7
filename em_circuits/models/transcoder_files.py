"""Transcoder sets on disk: which file holds which layer, and in what format.

A set is a directory with circuit-tracer's ``config.yaml``. Its ``transcoders`` list names a file
per layer, beside it or on the hub (``hf://org/repo/path``); without a list the files are
``layer_0.safetensors`` (or ``.npz``) and on, and those of a cross-layer transcoder ``W_enc_0`` and
``W_dec_0``. A file's format is told by the tensors in it, never by words in its path:

| format | tensors |
|---|---|
| circuit-tracer | ``W_enc`` (feature x d_model), ``W_dec``, ``b_enc``, ``b_dec``, ``W_skip`` |
| gemma-scope | ``W_enc`` (d_model x feature), ``W_dec``, ``b_enc``, ``b_dec``, ``threshold``; npz |
| gemma-scope-2 | ``w_enc`` (d_model x feature), ``w_dec``, ..., maybe ``affine_skip_connection`` |
| cross-layer | ``W_enc_0`` (feature x d_model); ``W_dec_0`` (feature x layer and later x d_model) |
| gemma-scope-2 cross-layer | ``w_enc`` (d_model x feature), ``w_dec`` (feature x layer x d_model) |

Headers are read, tensors are not; needs no torch.

    files = TranscoderFiles.read("--transcoders", reference, folder)
    files.layers[2].path, files.d_model
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import yaml

from em_circuits.models.files import refuse_pointer, tensor_shapes
from pivotal_tokens.errors import RequestError
from pivotal_tokens.text_yaml import typed_yaml

CONFIG = "config.yaml"
HUB = "hf://"
Format = Literal[
    "circuit-tracer", "gemma-scope", "gemma-scope-2", "gemma-scope-2 cross-layer", "cross-layer"
]
POSITIVE_ONLY = "positive_only"
"""Entry of the config of a Top-K set, see `TranscoderFiles.positive`."""
PER_LAYER, CROSS_LAYER = "transcoder_set", "cross_layer_transcoder"
DIFFERENCES = "transcoder_difference_set"
"""Of what a fine-tune's MLPs write that its base's do not; replaces no MLP."""
_NUMBERED = re.compile(r"layer_(\d+)\.(?:safetensors|npz)")
_ENCODER = re.compile(r"W_enc_(\d+)\.safetensors")
_TOP_K = {"facebook/crv-8b-instruct-transcoders": 128}
"""k of Top-K sets whose config does not say it, as circuit-tracer has it."""
_FOREIGN = {"cfg.json": "SAELens or sparsify"}

Shapes = Mapping[str, tuple[int, ...]]
Fetch = Callable[[str], Path]
"""Gives the file that a ``hf://`` entry names."""


@dataclass(frozen=True)
class LayerFile:
    """The file of one layer."""

    layer: int
    name: str
    """As the set names it: relative to its directory, or a ``hf://`` entry."""
    path: Path
    format: Format
    d_model: int
    width: int
    """Features."""
    decoder: Path | None = None
    """The decoder's file, where it is another (cross-layer)."""
    n_writes: int = 1
    """MLP outputs that a feature writes into."""

    @property
    def elements(self) -> int:
        """Numbers in encoder and decoder."""
        return (1 + self.n_writes) * self.d_model * self.width


@dataclass(frozen=True)
class TranscoderFiles:
    """A transcoder set whose files are all there and belong together."""

    reference: str
    folder: Path
    config: Mapping[str, Any]
    layers: tuple[LayerFile, ...]

    @property
    def cross_layer(self) -> bool:
        return bool(self.config["model_kind"] == CROSS_LAYER)

    @property
    def d_model(self) -> int:
        return self.layers[0].d_model

    @property
    def top_k(self) -> int | None:
        """k of a Top-K set; None where features are gated one by one."""
        if self.config.get("activation") != "topk":
            return None
        k = self.config.get("k") or _TOP_K.get(str(self.config.get("scan") or self.reference))
        if not isinstance(k, int) or k < 1:
            raise RequestError(
                f"{self.folder / CONFIG} says activation: topk but not how many; add k: NUMBER"
            )
        return k

    @property
    def positive(self) -> bool:
        """Of a Top-K set: features fire where they are of the k largest *and* above 0. Others, as
        circuit-tracer's class, take the k largest whatever their sign."""
        return bool(self.config.get(POSITIVE_ONLY))

    @property
    def files(self) -> dict[str, Path]:
        """Name -> path of everything that is read."""
        found = {CONFIG: self.folder / CONFIG}
        for one in self.layers:
            found[one.name] = one.path
            if one.decoder is not None:
                found[one.decoder.name] = one.decoder
        return found

    @classmethod
    def read(
        cls, flag: str, reference: str, folder: Path, fetch: Fetch | None = None
    ) -> TranscoderFiles:
        """Find the file of every layer, and look into its header.

        Args:
            flag: The option it came from, for messages.
            reference: What the user wrote.
            folder: The directory with ``config.yaml``.
            fetch: Gets the hub's entries; without it those must lie beside ``config.yaml``.

        Raises:
            RequestError: Naming the layer and file that is missing, broken or of another size.
            WorkFailed: If the hub does not give an entry.
        """
        config = read_config(flag, reference, folder)
        kind = config["model_kind"]
        if kind == CROSS_LAYER and config.get("transcoders") is None:
            found = _cross_layer(flag, folder)
        else:
            paths = _paths(flag, reference, folder, config, fetch)
            depth = len(paths) if kind == CROSS_LAYER else None
            found = tuple(_layer(flag, i, *entry, depth) for i, entry in enumerate(paths))
        files = cls(reference, folder, config, found)
        _check_sizes(flag, files)
        _ = files.top_k
        return files

    def check_fit(self, flag: str, *, d_model: int, n_layers: int) -> None:
        """Refuse a set of another width or depth than the model's.

        Raises:
            RequestError: Naming both values.
        """
        if self.d_model != d_model:
            raise RequestError(
                f"{flag} {self.reference} are {self.d_model} wide, the model is {d_model} wide; "
                "they belong to another model"
            )
        if len(self.layers) != n_layers:
            missing = f"layer {len(self.layers)} is missing, or " * (len(self.layers) < n_layers)
            raise RequestError(
                f"{flag} {self.reference} cover {len(self.layers)} layers, the model has "
                f"{n_layers}; {missing}they belong to another model"
            )


def read_config(flag: str, reference: str, folder: Path) -> dict[str, Any]:
    """The ``config.yaml`` of a transcoder set.

    Raises:
        RequestError: If it is not one.
    """
    path = folder / CONFIG
    refuse_pointer(flag, path)
    try:
        config = typed_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} is not YAML: {' '.join(str(error).split())[:160]}") from error
    kind = config.get("model_kind") if isinstance(config, dict) else None
    if kind not in (PER_LAYER, CROSS_LAYER, DIFFERENCES):
        raise RequestError(
            f"{flag} {reference}: {path.name} does not describe a transcoder set "
            f"(model_kind: {PER_LAYER} or {CROSS_LAYER})"
        )
    missing = {"feature_input_hook", "feature_output_hook"} - config.keys()
    if missing:
        raise RequestError(f"{path} lacks {', '.join(sorted(missing))}")
    listed = config.get("transcoders")
    if listed is not None and not (listed and all(isinstance(one, str) for one in listed)):
        raise RequestError(f"{path}: transcoders must be a list of files, one a layer")
    return {**config, "scan": config.get("scan") or reference}


def foreign_set(folder: Path) -> str | None:
    """The library that wrote a directory without ``config.yaml``, where its files tell."""
    for pattern, library in _FOREIGN.items():
        if next(folder.glob(f"**/{pattern}"), None) is not None:
            return library
    return None


def _paths(
    flag: str, reference: str, folder: Path, config: Mapping[str, Any], fetch: Fetch | None
) -> list[tuple[str, Path]]:
    """Name and path of each layer's file, in order."""
    listed = config.get("transcoders")
    if listed is None:
        return _numbered(flag, reference, folder)
    # The last parts of gemma-scope's entries are all params.npz: which is which only a path says.
    ends = Counter(PurePosixPath(one.split("?")[0]).name for one in listed)
    found = []
    for layer, entry in enumerate(listed):
        if not entry.startswith(HUB):
            found.append((entry, folder / entry))
            continue
        inside = entry.split("?")[0].removeprefix(HUB).split("/", 2)[-1]
        end = PurePosixPath(inside).name
        beside = [folder / inside, *([folder / end] if ends[end] == 1 else [])]
        local = next((path for path in beside if path.is_file()), None)
        if local is not None:
            found.append((local.relative_to(folder).as_posix(), local))
        elif fetch is None:
            raise RequestError(f"{flag} {reference}: layer {layer} is {entry}, not on this machine")
        else:
            found.append((entry, fetch(entry)))
    return found


def _numbered(flag: str, reference: str, folder: Path) -> list[tuple[str, Path]]:
    """``layer_0`` and on, none left out."""
    return [(path.name, path) for path in _counted(flag, reference, folder, _NUMBERED, "layer_*")]


def _counted(
    flag: str, reference: str, folder: Path, pattern: re.Pattern[str], shown: str
) -> list[Path]:
    numbers = {
        int(match[1]): path
        for path in folder.iterdir()
        if (match := pattern.fullmatch(path.name)) is not None
    }
    if not numbers:
        raise RequestError(f"{flag} {reference}: no {shown}.safetensors in {folder}")
    for layer in range(max(numbers) + 1):
        if layer not in numbers:
            name = numbers[max(numbers)].name.replace(str(max(numbers)), str(layer))
            raise RequestError(
                f"{flag} {reference}: layer {layer} is missing, no {name} in {folder}; "
                "download it again"
            )
    return [numbers[layer] for layer in range(max(numbers) + 1)]


def _layer(flag: str, layer: int, name: str, path: Path, depth: int | None = None) -> LayerFile:
    """One layer's file; `depth` is the number of layers of a cross-layer transcoder."""
    if not path.is_file():
        raise RequestError(f"{flag} layer {layer} is missing: no file {path}; download it again")
    shapes = _npz_shapes(flag, path) if path.suffix == ".npz" else tensor_shapes(flag, path)
    try:
        if "w_enc" in shapes:
            d_model, width = shapes["w_enc"]
            kind: Format = "gemma-scope-2" if depth is None else "gemma-scope-2 cross-layer"
            outputs = () if depth is None else (depth,)
            require_shapes(
                shapes, w_dec=(width, *outputs, d_model), b_enc=(width,), b_dec=(d_model,)
            )
            require_shapes(shapes, threshold=(width,))
        elif depth is not None:
            raise KeyError("w_enc")
        elif "threshold" in shapes and "W_enc" in shapes:
            d_model, width = shapes["W_enc"]
            kind = "gemma-scope"
            require_shapes(shapes, W_dec=(width, d_model), b_enc=(width,), b_dec=(d_model,))
            require_shapes(shapes, threshold=(width,))
        else:
            width, d_model = shapes["W_enc"]
            kind = "circuit-tracer"
            require_shapes(shapes, W_dec=(width, d_model), b_enc=(width,), b_dec=(d_model,))
    except (KeyError, ValueError) as error:
        found = ", ".join(f"{key} {list(shape)}" for key, shape in sorted(shapes.items())[:6])
        raise RequestError(
            f"{flag} layer {layer}: {path} is no transcoder that is known: {_reason(error)}; "
            f"it holds {found or 'nothing'}"
        ) from error
    writes = 1 if depth is None else depth - layer
    return LayerFile(layer, name, path, kind, d_model, width, n_writes=writes)


def _reason(error: Exception) -> str:
    return f"no {error.args[0]}" if isinstance(error, KeyError) else str(error)


def require_shapes(shapes: Shapes, **expected: tuple[int, ...]) -> None:
    """Refuse tensors of other shapes than expected.

    Raises:
        KeyError: One is not there.
        ValueError: Naming it and both shapes.
    """
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise ValueError(f"{name} is {list(shapes[name])}, expected {list(shape)}")


def _cross_layer(flag: str, folder: Path) -> tuple[LayerFile, ...]:
    encoders = _counted(flag, str(folder), folder, _ENCODER, "W_enc_*")
    n_layers = len(encoders)
    found = []
    for layer, path in enumerate(encoders):
        decoder = folder / f"W_dec_{layer}.safetensors"
        shapes = {**tensor_shapes(flag, path), **tensor_shapes(flag, decoder)}
        try:
            width, d_model = shapes[f"W_enc_{layer}"]
            expected = {
                f"W_dec_{layer}": (width, n_layers - layer, d_model),
                f"b_enc_{layer}": (width,),
                f"b_dec_{layer}": (d_model,),
            }
            require_shapes(shapes, **expected)
        except (KeyError, ValueError) as error:
            raise RequestError(
                f"{flag} layer {layer}: {path} is no layer of a cross-layer transcoder of "
                f"{n_layers}: {_reason(error)}"
            ) from error
        writes = n_layers - layer
        found.append(
            LayerFile(layer, path.name, path, "cross-layer", d_model, width, decoder, writes)
        )
    return tuple(found)


def _check_sizes(flag: str, files: TranscoderFiles) -> None:
    first = files.layers[0]
    for one in files.layers:
        if (one.width, one.d_model) != (first.width, first.d_model):
            raise RequestError(
                f"{flag} layer {one.layer}: {one.path} has {one.width} features of width "
                f"{one.d_model}, layer 0 {first.width} of {first.d_model}; they are not of one set"
            )


def _npz_shapes(flag: str, path: Path) -> dict[str, tuple[int, ...]]:
    import zipfile

    from numpy.lib import format as npy

    refuse_pointer(flag, path)
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    first = npy.read_magic(member) == (1, 0)
                    read = npy.read_array_header_1_0 if first else npy.read_array_header_2_0
                    shapes[name.removesuffix(".npy")] = read(member)[0]
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise RequestError(
            f"{flag} {path} is not a whole npz file: {error}; download or save it again"
        ) from error
    return shapes
