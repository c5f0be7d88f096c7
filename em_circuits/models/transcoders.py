"""Per-layer transcoders, loaded: on the device, in host memory or on disk.

transcoders, model_name = load_transcoders(source, device=device, dtype=dtype, place="disk")
"""

from __future__ import annotations

from typing import Any

import torch
import yaml
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet
from circuit_tracer.utils.hf_utils import load_transcoders as load_upstream
from safetensors import safe_open

from em_circuits.models.settings import TranscoderPlace
from em_circuits.models.source import Source
from pivotal_tokens.errors import RequestError


class HostTranscoder(SingleLayerTranscoder):
    """A transcoder whose two matrices stay in host memory and visit the device when read."""

    @classmethod
    def of(cls, lazy: SingleLayerTranscoder) -> HostTranscoder:
        """Turn a disk-lazy transcoder into one that reads from host memory."""
        lazy.__class__ = cls
        with safe_open(lazy.transcoder_path, framework="pt", device="cpu") as file:
            host = {name: file.get_tensor(name).to(lazy.dtype) for name in ("W_enc", "W_dec")}
        lazy.__dict__["host"] = host  # not a buffer: `.to(device)` must leave it alone
        return lazy  # type: ignore[return-value]

    def __getattr__(self, name: str) -> Any:
        host = self.__dict__.get("host")
        if host is not None and name in host:
            return host[name].to(self.device)
        return super().__getattr__(name)

    def _get_decoder_vectors(self, feat_ids: torch.Tensor | None = None) -> torch.Tensor:
        rows = self.__dict__["host"]["W_dec"]
        chosen = rows if feat_ids is None else rows[torch.as_tensor(feat_ids).cpu()]
        return chosen.to(self.device)


def load_transcoders(
    source: Source, *, device: torch.device, dtype: torch.dtype, place: TranscoderPlace
) -> tuple[TranscoderSet, str | None]:
    """Load per-layer transcoders from a circuit-tracer directory.

    Args:
        source: Directory with ``config.yaml`` and one safetensors file per layer.
        device: The models' device.
        dtype: The models' precision.
        place: ``gpu`` loads everything onto `device`; ``cpu`` keeps encoder and decoder in host
            memory; ``disk`` reads them from the files each time.

    Returns:
        The transcoders, and the base model they were trained on, where the directory names it.

    Raises:
        RequestError: If the directory is not a per-layer transcoder set.
    """
    config = _read_config(source)
    files = config.get("transcoders") or sorted(
        (p.name for p in source.path.glob("layer_*.safetensors")),
        key=lambda name: int(name.removeprefix("layer_").removesuffix(".safetensors")),
    )
    if not files or any(str(f).startswith("hf://") for f in files):
        raise RequestError(
            f"--transcoders {source.reference}: no layer_*.safetensors in {source.path}"
        )
    config["transcoders"] = [str(source.path / f) for f in files]
    config.setdefault("scan", source.reference)
    config["repo_id"] = source.reference
    lazy = place != "gpu"
    try:
        loaded = load_upstream(
            config, device=device, dtype=dtype, lazy_encoder=lazy, lazy_decoder=lazy
        )
    except (KeyError, OSError, AssertionError, RuntimeError) as error:
        raise RequestError(
            f"--transcoders {source.reference} cannot be loaded: {type(error).__name__} {error}"
        ) from error
    for transcoder in loaded if place == "cpu" else ():
        HostTranscoder.of(transcoder)
    return loaded, config.get("model_name")


def check_fit(reference: str, transcoders: TranscoderSet, *, d_model: int, n_layers: int) -> None:
    """Refuse transcoders of another width or depth.

    Raises:
        RequestError: Naming both values.
    """
    width = transcoders[0].b_dec.shape[0]
    if width != d_model:
        raise RequestError(
            f"--transcoders {reference} are {width} wide, the model is {d_model} wide; "
            "they belong to another model"
        )
    if len(transcoders) != n_layers:
        raise RequestError(
            f"--transcoders {reference} cover {len(transcoders)} layers, the model has {n_layers}; "
            "they belong to another model"
        )


def _read_config(source: Source) -> dict[str, Any]:
    path = source.path / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise RequestError(f"{path} is not YAML: {' '.join(str(error).split())[:160]}") from error
    if not isinstance(config, dict) or config.get("model_kind") != "transcoder_set":
        raise RequestError(
            f"--transcoders {source.reference}: {path.name} does not describe a per-layer "
            "transcoder set (model_kind: transcoder_set)"
        )
    missing = {"feature_input_hook", "feature_output_hook"} - config.keys()
    if missing:
        raise RequestError(f"{path} lacks {', '.join(sorted(missing))}")
    return config
