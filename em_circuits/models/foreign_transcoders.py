"""Transcoders of SAELens and sparsify (EleutherAI), written in circuit-tracer's layout.

| library | a layer is a folder of | it reads and writes | encoder |
|---|---|---|---|
| SAELens | ``cfg.json``, ``sae_weights.safetensors`` | `hook_name`, `hook_name_out` | d x latent |
| sparsify | ``cfg.json``, ``sae.safetensors`` | around ``layers.2.mlp``, its name | latent x d |

What both compute, and a converted layer with them:

    a = gate(W_enc (x - c) + b_enc),    y = W_dec a + b_dec + W_skip x

`c` is ``b_dec`` where `apply_b_dec_to_input` says so (it goes into the encoder's bias), else 0. The
gate is ReLU; JumpReLU above a threshold, and above 0; or ReLU of the k largest. What has another
formula (an autoencoder, gates of groups, a norm in front) is refused by name.

    layers = foreign_layers("SOURCE", Path("llama-skip-transcoders"))
    convert_transcoders("SOURCE", Path("llama-skip-transcoders"), Path("converted"))

Source of the formulas: SAELens 6 (`saes/transcoder.py`, `saes/sae.py`), sparsify 1.3
(`sparse_coder.py`, `fused_encoder.py`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from em_circuits.models.files import json_object, tensor_shapes
from em_circuits.models.transcoder_files import (
    CONFIG,
    PER_LAYER,
    POSITIVE_ONLY,
    TranscoderFiles,
    require_shapes,
)
from pivotal_tokens.artefacts import atomic_directory, sha256_file, write_provenance
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen

Library = Literal["SAELens", "sparsify"]
Gate = Literal["ReLU", "JumpReLU", "Top-K"]
_WEIGHTS: dict[str, Library] = {"sae_weights.safetensors": "SAELens", "sae.safetensors": "sparsify"}
_SAELENS: dict[str, tuple[Gate, bool]] = {
    "transcoder": ("ReLU", False),
    "skip_transcoder": ("ReLU", True),
    "jumprelu_transcoder": ("JumpReLU", False),
    "jumprelu_skip_transcoder": ("JumpReLU", True),
    "standard": ("ReLU", False),
    "jumprelu": ("JumpReLU", False),
    "topk": ("Top-K", False),
}
"""Architecture -> gate, and whether it has a skip connection. The last three are autoencoders,
unless they write elsewhere than they read: releases before 6 called transcoders so."""
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_MLP = re.compile(r"(?:.*\.)?(?:layers|h|blocks)\.(\d+)\.mlp")
_ALIASES = {"hook_mlp_in": "hook_resid_mid"}
"""TransformerLens's second name of a place."""


@dataclass(frozen=True)
class ForeignLayer:
    """One layer's transcoder of another library, as its configuration and header describe it."""

    library: Library
    layer: int
    weights: Path
    reads: str
    writes: str
    """Hook points, by TransformerLens's names."""
    d_model: int
    width: int
    gate: Gate
    k: int | None = None
    skip: bool = False
    shifted: bool = False
    """``b_dec`` is taken from what it reads."""
    model_name: str | None = None


class ConvertedTranscoders(Frozen):
    """What was written."""

    path: str
    library: str
    layers: int
    d_model: int
    width: int
    """Features of a layer."""
    gate: str
    k: int | None = None
    """Features that fire at a position, of a Top-K set."""
    skip: bool
    feature_input_hook: str
    feature_output_hook: str
    model_name: str | None = None
    """Base model that the set names as its own."""


def foreign_layers(flag: str, source: Path) -> tuple[ForeignLayer, ...]:
    """The layers of a directory of SAELens's or sparsify's, in order; only headers are read.

    Raises:
        RequestError: Naming the folder whose transcoder has another formula, is broken, missing,
            there twice, or unlike the others.
    """
    found = []
    for name, library in _WEIGHTS.items():
        for weights in sorted(source.rglob(name)):
            own = library == "SAELens"
            found.append(_saelens(flag, weights) if own else _sparsify(flag, source, weights))
    if not found:
        shown = " or ".join(f"cfg.json with {name} ({of})" for name, of in _WEIGHTS.items())
        raise RequestError(f"{flag} {source} holds no transcoders of another library: no {shown}")
    found.sort(key=lambda one: one.layer)
    places = {one.layer: one for one in found}
    if twice := [layer for layer, n in Counter(one.layer for one in found).items() if n > 1]:
        both = ", ".join(str(one.weights) for one in found if one.layer == twice[0])
        raise RequestError(f"{flag}: layer {twice[0]} is there more than once: {both}; keep one")
    if missing := [layer for layer in range(max(places) + 1) if layer not in places]:
        raise RequestError(
            f"{flag} {source}: layer {missing[0]} is missing ({len(found)} layers up to "
            f"{max(places)}); a set needs every layer of its model, download the rest"
        )
    first = found[0]
    for one in found:
        for name in ("library", "reads", "writes", "d_model", "width", "gate", "k", "skip"):
            ours, theirs = getattr(one, name), getattr(first, name)
            if ours != theirs:
                raise RequestError(
                    f"{flag} layer {one.layer}: {one.weights} has {name} {ours}, layer 0 {theirs}; "
                    "they are not of one set"
                )
    return tuple(found)


def _saelens(flag: str, weights: Path) -> ForeignLayer:
    config = json_object(flag, weights.with_name("cfg.json"))
    meta = config.get("metadata") or {}

    def said(name: str) -> Any:
        return meta.get(name) if config.get(name) is None else config[name]

    kind = str(config.get("architecture", "standard"))
    reads, writes = said("hook_name"), said("hook_name_out")
    if kind not in _SAELENS or (kind in ("standard", "jumprelu", "topk") and reads == writes):
        known = ", ".join(list(_SAELENS)[:4])
        raise RequestError(f"{flag} {weights.parent}: {kind!r} is none of SAELens's {known}")
    if not reads or not writes:
        raise RequestError(
            f"{flag} {weights.parent}: cfg.json does not say what the transcoder reads and writes; "
            'add "hook_name": "blocks.LAYER.ln2.hook_normalized" and "hook_name_out": '
            '"blocks.LAYER.hook_mlp_out", or what they are'
        )
    norm = config.get("normalize_activations") or "none"
    if norm != "none" or config.get("finetuning_scaling_factor"):
        scaled = norm if norm != "none" else "finetuning_scaling_factor"
        raise RequestError(
            f"{flag} {weights.parent}: it scales activations ({scaled}), which circuit-tracer's "
            "layout cannot say; save it again with the factor folded into its weights "
            "(SAELens: fold_activation_norm_scaling_factor)"
        )
    gate, skip = _SAELENS[kind]
    function = config.get("activation_fn_str") or config.get("activation_fn") or "relu"
    k = config.get("k") or (config.get("activation_fn_kwargs") or {}).get("k")
    if gate == "ReLU" and function == "topk":
        gate = "Top-K"
    elif function not in ("relu", "topk"):
        raise RequestError(f"{flag} {weights.parent}: activation {function!r} is not read here")
    layer, reads = _hook(flag, weights, str(reads), "reads")
    layer_out, writes = _hook(flag, weights, str(writes), "writes")
    if layer != layer_out:
        raise RequestError(
            f"{flag} {weights.parent}: it reads at layer {layer} and writes at {layer_out}; "
            "transcoders here write into the layer that they read"
        )
    shapes = tensor_shapes(flag, weights)

    def expected() -> tuple[int, int]:
        d_model, width = shapes["W_enc"]
        require_shapes(shapes, W_dec=(width, d_model), b_enc=(width,), b_dec=(d_model,))
        if gate == "JumpReLU":
            require_shapes(shapes, threshold=(width,))
        if skip:
            require_shapes(shapes, W_skip=(d_model, d_model))
        return d_model, width

    d_model, width = _sized(flag, weights, expected)
    return ForeignLayer(
        "SAELens",
        layer,
        weights,
        reads,
        writes,
        d_model,
        width,
        gate,
        k=_checked_k(flag, weights, k, width) if gate == "Top-K" else None,
        skip=skip,
        shifted=bool(config.get("apply_b_dec_to_input")),
        model_name=said("model_name"),
    )


def _sparsify(flag: str, source: Path, weights: Path) -> ForeignLayer:
    config = json_object(flag, weights.with_name("cfg.json"))
    run = weights.parent.with_name("config.json")
    told = json_object(flag, run) if run.is_file() and run.parent.is_relative_to(source) else {}
    transcode = config.get("transcode", told.get("transcode"))
    if not (config.get("skip_connection") if transcode is None else transcode):
        raise RequestError(
            f"{flag} {weights.parent}: cfg.json does not say transcode: true, so it is an "
            "autoencoder of one place; if it is a transcoder, write that into cfg.json"
        )
    place = _MLP.fullmatch(weights.parent.name)
    if place is None:
        raise RequestError(
            f"{flag} {weights.parent}: the folder of a layer is called by its MLP "
            "(layers.2.mlp, h.2.mlp); what another module reads and writes is no transcoder here"
        )
    for name in ("embed_skip", "gram_lookup"):
        if config.get(name):
            raise RequestError(f"{flag} {weights.parent}: {name} is no part of a transcoder here")
    if config.get("activation", "topk") != "topk":
        raise RequestError(
            f"{flag} {weights.parent}: activation {config['activation']!r} cannot be said in "
            "circuit-tracer's layout, only topk can"
        )
    shapes = tensor_shapes(flag, weights)
    skip = bool(config.get("skip_connection"))

    def expected() -> tuple[int, int]:
        width, d_model = shapes["encoder.weight"]
        bias: dict[str, tuple[int, ...]] = {"encoder.bias": (width,)}
        require_shapes(shapes, W_dec=(width, d_model), b_dec=(d_model,), **bias)
        if skip:
            require_shapes(shapes, W_skip=(d_model, d_model))
        return d_model, width

    d_model, width = _sized(flag, weights, expected)
    return ForeignLayer(
        "sparsify",
        int(place[1]),
        weights,
        "mlp.hook_in",
        "mlp.hook_out",
        d_model,
        width,
        "Top-K",
        k=_checked_k(flag, weights, config.get("k"), width),
        skip=skip,
        model_name=told.get("model"),
    )


def _hook(flag: str, weights: Path, name: str, side: Literal["reads", "writes"]) -> tuple[int, str]:
    """Layer and hook point of ``blocks.3.ln2.hook_normalized``."""
    from em_circuits.models.sites import READS, WRITES

    places = READS if side == "reads" else WRITES
    found = _BLOCK.fullmatch(name)
    hook = None if found is None else _ALIASES.get(found[2], found[2])
    if found is None or hook not in places:
        raise RequestError(
            f"{flag} {weights.parent}: {name!r} is no place that a transcoder {side} here; "
            f"known: {', '.join(f'blocks.LAYER.{place}' for place in places)}"
        )
    return int(found[1]), str(hook)


def _checked_k(flag: str, weights: Path, k: Any, width: int) -> int:
    if not isinstance(k, int) or not 1 <= k <= width:
        raise RequestError(
            f"{flag} {weights.parent}: cfg.json has k {k!r}, expected 1 to {width} (its features)"
        )
    return k


def _sized(flag: str, weights: Path, expected: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    try:
        return expected()
    except (KeyError, ValueError) as error:
        reason = f"no {error.args[0]}" if isinstance(error, KeyError) else str(error)
        raise RequestError(f"{flag} {weights} is not what its cfg.json says: {reason}") from error


def converted_tensors(one: ForeignLayer) -> dict[str, Any]:
    """The tensors of a layer, by circuit-tracer's names and in its orientation."""
    from safetensors import safe_open

    from em_circuits.models.transcoders import THRESHOLD

    with safe_open(one.weights, framework="pt") as held:
        read = held.get_tensor
        if one.library == "sparsify":
            encoder, bias = read("encoder.weight"), read("encoder.bias")
        else:
            encoder, bias = read("W_enc").T.contiguous(), read("b_enc")
        found = {"W_enc": encoder, "W_dec": read("W_dec"), "b_enc": bias, "b_dec": read("b_dec")}
        if one.skip:
            found["W_skip"] = read("W_skip")
        if one.gate == "JumpReLU":
            # Theirs is ReLU above the threshold: below 0 nothing fires either.
            found[THRESHOLD] = read("threshold").clamp(min=0)
    if one.shifted:
        shift = encoder.double() @ found["b_dec"].double()
        found["b_enc"] = (bias.double() - shift).to(bias.dtype)
    return found


def convert_transcoders(
    flag: str, source: Path, out: Path, *, model_name: str | None = None
) -> ConvertedTranscoders:
    """Write a set in circuit-tracer's layout: `layer_0.safetensors` and on, and `config.yaml`.

    Args:
        flag: What `source` was given as, for messages.
        source: Of SAELens or sparsify; or a set that is read here as it is (gemma-scope's).
        out: A directory that is not there yet.
        model_name: Base model that `config.yaml` names; what the files say if not given.

    Raises:
        RequestError: If `out` is there, or `source` is not such a set.
    """
    if out.exists():
        raise RequestError(f"--out {out} is there already; give a new directory")
    config: dict[str, Any]
    if (source / CONFIG).is_file():
        files = TranscoderFiles.read(flag, str(source), source)
        if {one.format for one in files.layers} <= {"circuit-tracer", "cross-layer"}:
            raise RequestError(f"{flag} {source} is in circuit-tracer's layout already")
        config = {name: value for name, value in files.config.items() if name != "transcoders"}
        with atomic_directory(out) as place:
            gates = _write_known(files, place)
            made = _written(place, "gemma-scope", config, model_name, files.files)
        sizes = {"layers": len(files.layers), "d_model": files.d_model}
        known = {**sizes, "width": files.layers[0].width, **gates}
        return ConvertedTranscoders(path=str(out), library="gemma-scope", **known, **made)
    layers = foreign_layers(flag, source)
    first = layers[0]
    config = {
        "model_kind": PER_LAYER,
        "model_name": first.model_name,
        "feature_input_hook": first.reads,
        "feature_output_hook": first.writes,
        "scan": source.resolve().name,
    }
    if first.gate == "Top-K":
        config |= {"activation": "topk", "k": first.k, POSITIVE_ONLY: True}
    with atomic_directory(out) as place:
        for one in layers:
            _save(converted_tensors(one), place / f"layer_{one.layer}.safetensors")
        inputs = {str(one.weights.relative_to(source)): one.weights for one in layers}
        made = _written(place, first.library, config, model_name, inputs)
    return ConvertedTranscoders(
        path=str(out),
        library=first.library,
        layers=len(layers),
        d_model=first.d_model,
        width=first.width,
        gate=first.gate,
        k=first.k,
        skip=first.skip,
        **made,
    )


def _write_known(files: TranscoderFiles, place: Path) -> dict[str, Any]:
    from em_circuits.models.transcoders import THRESHOLD, held_names, read_tensor

    names: list[str] = []
    for file in files.layers:
        names = held_names(file)
        tensors = {name: read_tensor(file, name) for name in names}
        if not files.cross_layer:
            _save(tensors, place / f"layer_{file.layer}.safetensors")
            continue
        if "W_skip" in names:
            raise RequestError(
                f"{files.reference} has skip connections, for which circuit-tracer's cross-layer "
                "layout has no place; it is read as it is"
            )
        tensors = {("threshold" if n == THRESHOLD else n): value for n, value in tensors.items()}
        tensors = {f"{name}_{file.layer}": value for name, value in tensors.items()}
        decoder = f"W_dec_{file.layer}"
        _save({decoder: tensors.pop(decoder)}, place / f"{decoder}.safetensors")
        _save(tensors, place / f"W_enc_{file.layer}.safetensors")
    return {"gate": "JumpReLU" if THRESHOLD in names else "ReLU", "skip": "W_skip" in names}


def _save(tensors: Mapping[str, Any], path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def _written(
    place: Path,
    library: str,
    config: dict[str, Any],
    model_name: str | None,
    inputs: Mapping[str, Path],
) -> dict[str, Any]:
    """Write ``config.yaml`` and its provenance; what the result says of it."""
    config["model_name"] = model_name or config.get("model_name")
    kept = {name: value for name, value in config.items() if value is not None}
    (place / CONFIG).write_text(yaml.safe_dump(kept, sort_keys=False), encoding="utf-8")
    hashes = {name: sha256_file(path) for name, path in inputs.items()}
    write_provenance(place / CONFIG, inputs=hashes, config={"library": library, **kept})
    named = ("feature_input_hook", "feature_output_hook", "model_name")
    return {name: kept.get(name) for name in named}
