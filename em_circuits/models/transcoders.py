"""Transcoders, loaded: on the device, in host memory or on disk, whatever format the files have.

    transcoders = load_transcoders(files, device=device, dtype=dtype, place="disk")

Every format becomes circuit-tracer's own classes. What is read lazily is read in the file's own
format: matrices of other formats are turned as they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from circuit_tracer.transcoder.activation_functions import JumpReLU, TopK
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder, load_clt
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet
from safetensors import safe_open
from torch import Tensor

from em_circuits.models.foreign import foreign_errors
from em_circuits.models.settings import TranscoderPlace
from em_circuits.models.transcoder_files import LayerFile, TranscoderFiles

Transcoders = TranscoderSet | CrossLayerTranscoder

_MATRICES = ("W_enc", "W_dec")
_THRESHOLD = "activation_function.threshold"
_THEIR_NAMES = {
    "circuit-tracer": {},
    "gemma-scope": {_THRESHOLD: "threshold"},
    "gemma-scope-2": {
        "W_enc": "w_enc",
        "W_dec": "w_dec",
        "W_skip": "affine_skip_connection",
        _THRESHOLD: "threshold",
    },
}
"""circuit-tracer's name of a tensor -> the format's, where it differs."""
_TURNED = {"circuit-tracer": (), "gemma-scope": ("W_enc",), "gemma-scope-2": ("W_enc", "W_skip")}
"""Matrices that a format keeps transposed."""


class StoredTranscoder(SingleLayerTranscoder):
    """A transcoder whose two matrices are not on the device: `read(name)` gives them when used."""

    read: Callable[[str], Tensor]

    def __getattr__(self, name: str) -> Any:
        if name in _MATRICES and "read" in self.__dict__:
            return self.read(name).to(self.device, self.dtype)
        return super().__getattr__(name)

    def _get_decoder_vectors(self, feat_ids: Tensor | None = None) -> Tensor:
        rows = self.read("W_dec")
        chosen = rows if feat_ids is None else rows[torch.as_tensor(feat_ids).cpu()]
        return chosen.to(self.device, self.dtype)


def load_transcoders(
    files: TranscoderFiles, *, device: torch.device, dtype: torch.dtype, place: TranscoderPlace
) -> Transcoders:
    """Load a transcoder set.

    Args:
        files: Where each layer is, and in which format.
        device: The models' device.
        dtype: The models' precision.
        place: ``gpu`` loads everything onto `device`; ``cpu`` keeps encoder and decoder in host
            memory; ``disk`` reads them from the files each time.

    Raises:
        RequestError: If a file cannot be read.
    """
    hooks = {name: files.config[name] for name in ("feature_input_hook", "feature_output_hook")}
    scan = files.config["scan"]
    if files.cross_layer:
        # Host memory is no place of circuit-tracer's cross-layer transcoders: read from disk.
        lazy = place != "gpu"
        with foreign_errors(f"--transcoders {files.reference} cannot be loaded"):
            return load_clt(
                str(files.folder),
                **hooks,
                scan=scan,
                device=device,
                dtype=dtype,
                lazy_encoder=lazy,
                lazy_decoder=lazy,
            )
    top_k = files.top_k
    layers = {}
    for file in files.layers:
        with foreign_errors(f"--transcoders layer {file.layer}: {file.path} cannot be loaded"):
            layers[file.layer] = _load_layer(file, top_k, device, dtype, place)
    return TranscoderSet(layers, scan=scan, **hooks)


def _load_layer(
    file: LayerFile,
    top_k: int | None,
    device: torch.device,
    dtype: torch.dtype,
    place: TranscoderPlace,
) -> SingleLayerTranscoder:
    names = _names(file)
    lazy = place != "gpu"
    tensors = {
        name: read_tensor(file, name).to(device, dtype)
        for name in names
        if not (lazy and name in _MATRICES)
    }
    # Slices of this format's files circuit-tracer reads by itself.
    own = lazy and not (place == "disk" and file.format == "circuit-tracer")
    with torch.device("meta"):
        transcoder = (StoredTranscoder if own else SingleLayerTranscoder)(
            file.d_model,
            file.width,
            _activation(tensors, top_k),
            file.layer,
            skip_connection="W_skip" in tensors,
            transcoder_path=str(file.path),
            lazy_encoder=lazy,
            lazy_decoder=lazy,
        )
    transcoder.load_state_dict(tensors, assign=True)
    if own:
        read: Callable[[str], Tensor] = partial(read_tensor, file)
        if place == "cpu":
            read = {name: read(name).to(dtype) for name in _MATRICES}.__getitem__
        transcoder.__dict__["read"] = read  # no buffer: `.to(device)` must leave it alone
    return transcoder.to(dtype)


def read_tensor(file: LayerFile, name: str) -> Tensor:
    """A tensor of a layer's file, on the CPU, under circuit-tracer's name and orientation."""
    theirs = _THEIR_NAMES[file.format].get(name, name)
    if file.path.suffix == ".npz":
        import numpy as np

        with np.load(file.path) as arrays:
            found = torch.from_numpy(arrays[theirs])
    else:
        with safe_open(file.path, framework="pt") as tensors:
            found = tensors.get_tensor(theirs)
    return found.T.contiguous() if name in _TURNED[file.format] else found


def layer_tensors(transcoders: Transcoders, layer: int) -> Iterator[tuple[str, Tensor]]:
    """Name and value of everything in one layer, read where it waits."""
    if isinstance(transcoders, CrossLayerTranscoder):
        yield "W_enc", transcoders._get_encoder_weights(layer)
        yield "W_dec", transcoders._get_decoder_vectors(layer)
        yield "b_enc", transcoders.b_enc[layer]
        yield "b_dec", transcoders.b_dec[layer]
        if isinstance(transcoders.activation_function, JumpReLU):
            yield "threshold", transcoders.activation_function.threshold[layer]
        return
    transcoder = transcoders[layer]
    for name in _MATRICES:
        yield name, getattr(transcoder, name)
    yield from ((n, p) for n, p in transcoder.named_parameters() if n not in _MATRICES)


def _names(file: LayerFile) -> list[str]:
    """Names, as circuit-tracer calls them, of the tensors that a layer's file holds."""
    if file.path.suffix == ".npz":
        import numpy as np

        with np.load(file.path) as arrays:
            held = set(arrays.files)
    else:
        with safe_open(file.path, framework="pt") as tensors:
            held = set(tensors.keys())
    wanted = ("W_enc", "W_dec", "b_enc", "b_dec", "W_skip", _THRESHOLD)
    return [one for one in wanted if _THEIR_NAMES[file.format].get(one, one) in held]


def _activation(tensors: dict[str, Tensor], top_k: int | None) -> Any:
    if top_k is not None:
        return TopK(top_k)
    threshold = tensors.get(_THRESHOLD)
    # The bandwidth is of training alone.
    return torch.nn.functional.relu if threshold is None else JumpReLU(threshold, 0.1)
