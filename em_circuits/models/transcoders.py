"""Transcoders, loaded: on the device, in host memory or on disk, whatever format the files have.

    transcoders = load_transcoders(files, device=device, dtype=dtype, place="disk")
    transcoders[2].encode(x)

A set is a `TranscoderDictionary` a layer, in any format. What is read lazily is read in the file's
own format: matrices that it keeps transposed are turned as they are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Int64
from safetensors import safe_open
from torch import Tensor

from em_circuits.models.dictionaries import TranscoderDictionary
from em_circuits.models.foreign import foreign_errors
from em_circuits.models.memory import available_bytes
from em_circuits.models.settings import TranscoderPlace
from em_circuits.models.stored_rows import FileMatrix, HostMatrix, Matrix, StoredRows, kept_bytes
from em_circuits.models.transcoder_files import LayerFile, TranscoderFiles
from pivotal_tokens.errors import RequestError

_MATRICES = ("W_enc", "W_dec")
THRESHOLD = "activation_function.threshold"
_NAMES = (*_MATRICES, "b_enc", "b_dec", "W_skip", THRESHOLD)
_SCOPE_2 = {
    "W_enc": "w_enc",
    "W_dec": "w_dec",
    "W_skip": "affine_skip_connection",
    THRESHOLD: "threshold",
}
_THEIR_NAMES: Mapping[str, Mapping[str, str]] = {
    "circuit-tracer": {},
    "gemma-scope": {THRESHOLD: "threshold"},
    "gemma-scope-2": _SCOPE_2,
    "gemma-scope-2 cross-layer": _SCOPE_2,
    "cross-layer": {
        **{name: f"{name}_{{layer}}" for name in (*_MATRICES, "b_enc", "b_dec")},
        THRESHOLD: "threshold_{layer}",
    },
}
"""circuit-tracer's name of a tensor -> the format's, where it differs."""
_TURNED = {
    "gemma-scope": ("W_enc",),
    "gemma-scope-2": ("W_enc", "W_skip"),
    "gemma-scope-2 cross-layer": ("W_enc", "W_skip"),
}
"""Matrices that a format keeps transposed."""


@dataclass(frozen=True, eq=False)
class Transcoders:
    """A set: one dictionary a layer, and where in a layer they read and write."""

    layers: tuple[TranscoderDictionary, ...]
    feature_input_hook: str
    feature_output_hook: str
    scan: str | list[str] | None = None
    """circuit-tracer's name of the features."""
    cross_layer: bool = False
    stored: StoredRows = field(default_factory=StoredRows, repr=False)
    """Reader of what is not on the device."""

    def __getitem__(self, layer: int) -> TranscoderDictionary:
        return self.layers[layer]

    def __len__(self) -> int:
        return len(self.layers)

    def among(self, active: Int64[Tensor, "active 3"]) -> Transcoders:
        """Only the features of some (layer, position, feature id), each at every position."""
        layer, _, feature = active.unbind(1)
        layers = [one.among(feature[layer == i].unique()) for i, one in enumerate(self.layers)]
        return replace(self, layers=tuple(layers))


def load_transcoders(
    files: TranscoderFiles, *, device: torch.device, dtype: torch.dtype, place: TranscoderPlace
) -> Transcoders:
    """Load a transcoder set.

    Args:
        files: Where each layer is, and in which format.
        device: The models' device.
        dtype: The models' precision.
        place: ``gpu`` loads everything onto `device`; ``cpu`` keeps encoder and decoder in host
            memory; ``disk`` reads them from the files, of a few features their rows alone.

    Raises:
        RequestError: If a file cannot be read.
    """
    layers, stored = [], StoredRows(kept_bytes(available_bytes(device)))
    for file in files.layers:
        with foreign_errors(f"--transcoders layer {file.layer}: {file.path} cannot be loaded"):
            layers.append(_load_layer(files, file, device, dtype, place, stored))
    return Transcoders(
        tuple(layers),
        files.config["feature_input_hook"],
        files.config["feature_output_hook"],
        files.config["scan"],
        files.cross_layer,
        stored,
    )


def _load_layer(
    files: TranscoderFiles,
    file: LayerFile,
    device: torch.device,
    dtype: torch.dtype,
    place: TranscoderPlace,
    stored: StoredRows,
) -> TranscoderDictionary:
    small = {
        name: read_tensor(file, name).to(device, dtype)
        for name in held_names(file)
        if name not in _MATRICES
    }
    here = {}
    waiting: dict[str, Matrix] = {name: in_file(file, name) for name in _MATRICES}
    if place == "gpu":
        here = {name: read_tensor(file, name).to(device, dtype) for name in _MATRICES}
    elif place == "cpu":
        for name, matrix in waiting.items():
            values = matrix.whole()[0].to(dtype)
            # Pinned memory is copied to a device without a second copy on the way.
            values = values.pin_memory() if device.type == "cuda" else values
            waiting[name] = HostMatrix(matrix.key, values)

    def matrices(name: str, ids: Tensor | None) -> Tensor:
        if here:
            return here[name] if ids is None else here[name][ids.to(device)]
        if ids is None:
            return stored.whole(waiting[name]).to(device, dtype)
        return stored.rows(waiting[name], ids, device=device, dtype=dtype)

    threshold = small.get(THRESHOLD)
    return TranscoderDictionary(
        file.layer,
        matrices,
        small["b_enc"],
        small["b_dec"],
        W_skip=small.get("W_skip"),
        threshold=None if threshold is None else threshold.expand_as(small["b_enc"]),
        top_k=files.top_k,
        positive=files.positive,
        n_writes=file.n_writes,
    )


def read_tensor(file: LayerFile, name: str) -> Tensor:
    """A tensor of a layer's file, on the CPU, under circuit-tracer's name and orientation."""
    return in_file(file, name).whole()[0]


def in_file(file: LayerFile, name: str) -> FileMatrix:
    """Where a tensor of a layer lies, under circuit-tracer's name and orientation."""
    # gemma-scope-2 keeps a row for every layer's output, also of those before the encoder's.
    listed = name == "W_dec" and file.format == "gemma-scope-2 cross-layer"
    return FileMatrix(
        file.decoder if name == "W_dec" and file.decoder is not None else file.path,
        _theirs(file, name),
        turned=name in _TURNED.get(file.format, ()),
        first=file.layer if listed else 0,
    )


def not_finite(dictionary: TranscoderDictionary, file: LayerFile) -> str | None:
    """The first matrix of a layer that holds NaN or infinite numbers, and its file; None if none
    does."""
    for name in _NAMES:
        if name in _MATRICES:  # one at a time, read where it waits
            values = dictionary.matrices(name, None)
        else:
            field = "threshold" if name == THRESHOLD else name
            if (held := getattr(dictionary, field)) is None:
                continue
            values = held
        low, high = values.aminmax()  # NaN passes through, no mask as large as the matrix
        if not (low.isfinite() and high.isfinite()):
            path = file.decoder if name == "W_dec" and file.decoder else file.path
            return f"layer {file.layer}: {name} holds NaN or infinite numbers, in {path}"
    return None


def read_decoder_row(file: LayerFile, feature: int) -> Tensor:
    """What one feature of a per-layer transcoder writes, without reading the rest of the matrix.

    Raises:
        RequestError: If the layer writes into several, or has no such feature.
    """
    if file.n_writes > 1:
        raise RequestError("a cross-layer feature writes into several layers")
    if not 0 <= feature < file.width:
        raise RequestError(f"layer {file.layer} has features 0 to {file.width - 1}")
    return in_file(file, "W_dec").rows(torch.tensor([feature]))[0][0]


def held_names(file: LayerFile) -> list[str]:
    """Names, as circuit-tracer calls them, of the tensors that a layer's file holds."""
    if file.path.suffix == ".npz":
        import numpy as np

        with np.load(file.path) as arrays:
            held = set(arrays.files)
    else:
        with safe_open(file.path, framework="pt") as tensors:
            held = set(tensors.keys())
    decoder = {"W_dec"} if file.decoder is not None else set()
    return [one for one in _NAMES if one in decoder or _theirs(file, one) in held]


def _theirs(file: LayerFile, name: str) -> str:
    return _THEIR_NAMES[file.format].get(name, name).format(layer=file.layer)
