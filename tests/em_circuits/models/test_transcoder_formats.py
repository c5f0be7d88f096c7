"""Transcoders in every published format hold the same numbers, wherever they wait."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lifelike import Lifelike
from safetensors.torch import load_file, save_file
from test_adapter_kinds import no_model_loads, refused
from test_pair import settings

from em_circuits.models import ModelPair
from em_circuits.models.health import check_transcoder_weights, require_healthy
from em_circuits.models.source import locate
from pivotal_tokens.errors import WorkFailed

__all__ = ["no_model_loads"]
THRESHOLD = "activation_function.threshold"


def tensors_of(layer: int, jump: bool = True, skip: bool = True) -> dict[str, torch.Tensor]:
    """One layer of the fixture's width, as circuit-tracer names and turns it."""
    generator = torch.Generator().manual_seed(layer)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    held = {
        "W_enc": drawn(96, 64) / 8,
        "W_dec": 0.1 * drawn(96, 64),
        "b_enc": 0.1 * drawn(96) - 0.8,
        "b_dec": 0.02 * drawn(64),
    }
    held |= {THRESHOLD: 0.1 + 0.1 * drawn(96).abs()} if jump else {}
    return held | ({"W_skip": 0.02 * drawn(64, 64)} if skip else {})


def own(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def npz(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    renamed = {**tensors, "W_enc": tensors["W_enc"].T, "threshold": tensors[THRESHOLD]}
    del renamed[THRESHOLD]
    arrays = {name: value.numpy() for name, value in renamed.items()}
    np.savez(path.with_suffix(".npz"), **arrays)
    return path.with_suffix(".npz")


def gemma_scope_2(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    renamed = {
        "w_enc": tensors["W_enc"].T.contiguous(),
        "w_dec": tensors["W_dec"],
        "b_enc": tensors["b_enc"],
        "b_dec": tensors["b_dec"],
        "threshold": tensors[THRESHOLD],
    }
    if "W_skip" in tensors:
        renamed["affine_skip_connection"] = tensors["W_skip"].T.contiguous()
    return own(path, renamed)


FORMATS: dict[str, tuple[Callable[..., Path], dict[str, bool]]] = {
    "circuit-tracer": (own, {}),
    "circuit-tracer, ReLU": (own, {"jump": False}),
    "gemma-scope": (npz, {"skip": False}),
    "gemma-scope-2": (gemma_scope_2, {}),
    "gemma-scope-2, no skip": (gemma_scope_2, {"skip": False}),
}
PLACES = ("layer_{}", "sets/width_16k/layer_{}/params")


def write(folder: Path, form: str, place: str = "layer_{}", **config: object) -> Path:
    """A set of four layers; the paths of gemma-scope end in params.npz, all of them."""
    save, parts = FORMATS[form]
    names = []
    for layer in range(4):
        path = folder / place.format(layer)
        path.parent.mkdir(parents=True, exist_ok=True)
        names.append(save(path, tensors_of(layer, **parts)).relative_to(folder).as_posix())
    record = {
        "model_kind": "transcoder_set",
        "feature_input_hook": "hook_resid_mid",
        "feature_output_hook": "hook_mlp_out",
        "model_name": "somewhere/lifelike-1b",
        **({} if place == PLACES[0] else {"transcoders": names}),
        **config,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(record))
    return folder


@pytest.mark.parametrize("where", ["gpu", "cpu", "disk"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", list(FORMATS))
def test_every_format_computes_the_same(
    form: str, place: str, where: str, lifelike_paths: Lifelike, tmp_path: Path
) -> None:
    # the loader went by words in the path: npz needed "gemma-scope" there, and was not lazy
    folder = write(tmp_path / "some-gemma-scope-2-set", form, place)
    chosen = settings(lifelike_paths, transcoders=str(folder), transcoders_on=where)
    with ModelPair.load(chosen) as pair:
        x = torch.randn(5, 64)
        for layer, transcoder in enumerate(pair.transcoders):
            held = tensors_of(layer, **FORMATS[form][1])
            before = x @ held["W_enc"].T + held["b_enc"]
            acts = before * (before > held.get(THRESHOLD, 0))
            skip = held.get("W_skip", torch.zeros(64, 64))
            expected = acts @ held["W_dec"] + held["b_dec"] + x @ skip.T
            assert (transcoder.encode(x) - acts).abs().max() < 1e-6
            assert (transcoder.decode(transcoder.encode(x), x) - expected).abs().max() < 1e-6
            rows = torch.tensor([3, 95, 3])
            assert torch.equal(transcoder.decoder(rows), held["W_dec"][rows])
        assert check_transcoder_weights(pair).ok


def test_top_k_sets_keep_k_features(lifelike_paths: Lifelike, tmp_path: Path) -> None:
    folder = write(tmp_path / "set", "circuit-tracer, ReLU", activation="topk", k=7)
    with ModelPair.load(settings(lifelike_paths, transcoders=str(folder))) as pair:
        x = torch.randn(5, 64)
        held = tensors_of(1, jump=False)
        before = x @ held["W_enc"].T + held["b_enc"]
        kept = before.topk(7)
        expected = torch.zeros_like(before).scatter(1, kept.indices, kept.values)
        found = pair.transcoders[1].encode(x)
        assert (found - expected).abs().max() < 1e-6
        assert ((found != 0).sum(1) == 7).all()


def test_a_top_k_set_that_does_not_say_k_is_refused(
    lifelike_paths: Lifelike, tmp_path: Path, no_model_loads: None
) -> None:
    folder = write(tmp_path / "set", "circuit-tracer", activation="topk")
    assert "activation: topk but not how many; add k:" in refused(
        lifelike_paths, transcoders=str(folder)
    )
    # The one public set without it, as circuit-tracer has it.
    folder = write(
        tmp_path / "known",
        "circuit-tracer",
        activation="topk",
        scan="facebook/crv-8b-instruct-transcoders",
    )
    found = locate("--transcoders", str(folder), kind="transcoders").transcoders
    assert found is not None and found.top_k == 128


def test_entries_of_the_hub_that_lie_beside_the_configuration_are_used(
    lifelike_paths: Lifelike, tmp_path: Path
) -> None:
    # "no layer_*.safetensors in ...", although all are there
    flat = [f"hf://org/set/layer_{i}.safetensors" for i in range(4)]
    folder = write(tmp_path / "flat", "circuit-tracer", transcoders=flat)
    deep = [f"hf://google/scope/sets/width_16k/layer_{i}/params.npz?revision=1" for i in range(4)]
    other = write(tmp_path / "deep", "gemma-scope", PLACES[1])
    record = yaml.safe_load((other / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump(record | {"transcoders": deep}))
    for one in (folder, other):
        with ModelPair.load(settings(lifelike_paths, transcoders=str(one))) as pair:
            for layer in range(4):
                rows = pair.transcoders[layer].decoder(torch.arange(3))
                assert torch.equal(rows, tensors_of(layer, skip=one == folder)["W_dec"][:3])


def test_entries_of_the_hub_that_are_nowhere_say_what_was_not_reached(
    lifelike_paths: Lifelike, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_model_loads: None
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    entries = [f"hf://org/elsewhere/scope/layer_{i}.safetensors" for i in range(4)]
    folder = write(tmp_path / "set", "circuit-tracer", transcoders=entries)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(WorkFailed) as caught:
        ModelPair.load(settings(lifelike_paths, transcoders=str(folder)))
    assert entries[0] in str(caught.value)
    assert "could not reach the model hub for org/elsewhere" in str(caught.value)


def change(folder: Path, layer: int, **tensors: torch.Tensor | None) -> Path:
    file = folder / f"layer_{layer}.safetensors"
    held = {k: v for k, v in (load_file(file) | tensors).items() if v is not None}
    save_file(held, file)
    return file


@pytest.mark.parametrize("form", ["circuit-tracer", "gemma-scope"])
@pytest.mark.parametrize("gone", [0, 2, 3])
def test_a_missing_layer_is_named_with_its_file(
    gone: int, form: str, lifelike_paths: Lifelike, tmp_path: Path, no_model_loads: None
) -> None:
    # "cover 3 layers; they belong to another model"
    folder = write(tmp_path / "set", form)
    file = next(folder.glob(f"layer_{gone}.*"))
    file.unlink()
    message = refused(lifelike_paths, transcoders=str(folder))
    assert f"layer {gone} is missing" in message
    assert gone == 3 or file.name in message
    listed = write(tmp_path / "listed", form, PLACES[1])
    file = next(listed.glob(f"sets/*/layer_{gone}/*"))
    file.unlink()
    message = refused(lifelike_paths, transcoders=str(listed))
    assert f"layer {gone} is missing" in message and str(file) in message


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"W_dec": None}, "no W_dec"),
        ({"W_dec": torch.zeros(96, 63)}, r"W_dec is [96, 63], expected [96, 64]"),
        ({"b_enc": torch.zeros(5)}, r"b_enc is [5], expected [96]"),
        ({"W_enc": torch.zeros(3, 96, 64)}, "no transcoder that is known"),
        (
            {
                "W_enc": torch.zeros(80, 64),
                "W_dec": torch.zeros(80, 64),
                "b_enc": torch.zeros(80),
                THRESHOLD: torch.zeros(80),
            },
            "80 features of width 64, layer 0 96 of 64",
        ),
    ],
)
def test_a_layer_of_another_shape_is_named(
    tensors: dict, said: str, lifelike_paths: Lifelike, tmp_path: Path, no_model_loads: None
) -> None:
    folder = write(tmp_path / "set", "circuit-tracer")
    file = change(folder, 2, **tensors)
    message = refused(lifelike_paths, transcoders=str(folder))
    assert "layer 2" in message and str(file) in message and said in message


@pytest.mark.parametrize("where", ["gpu", "cpu", "disk"])
@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec", THRESHOLD, "W_skip"])
def test_numbers_that_are_none_are_named_by_layer_matrix_and_file(
    name: str, where: str, lifelike_paths: Lifelike, tmp_path: Path
) -> None:
    # doctor looked at none of it: all ok
    folder = write(tmp_path / "set", "circuit-tracer")
    broken = tensors_of(2)[name].clone()
    broken.view(-1)[7] = torch.nan if where == "gpu" else -torch.inf
    file = change(folder, 2, **{name: broken})
    chosen = settings(lifelike_paths, transcoders=str(folder), transcoders_on=where)
    with ModelPair.load(chosen) as pair:
        check = check_transcoder_weights(pair)
        assert check.found == f"layer 2: {name} holds NaN or infinite numbers, in {file}"
        with pytest.raises(WorkFailed, match="transcoder weights finite"):
            require_healthy([check])


def test_a_broken_npz_is_named(
    lifelike_paths: Lifelike, tmp_path: Path, no_model_loads: None
) -> None:
    folder = write(tmp_path / "set", "gemma-scope")
    file = folder / "layer_1.npz"
    file.write_bytes(file.read_bytes()[:1000])
    message = refused(lifelike_paths, transcoders=str(folder))
    assert f"{file} is not a whole npz file" in message


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ("{", "is not YAML"),
        ("[]", "does not describe a transcoder set"),
        ("model_kind: sae", "does not describe a transcoder set"),
        ("model_kind: transcoder_set", "lacks feature_input_hook, feature_output_hook"),
        (
            "{model_kind: transcoder_set, feature_input_hook: a, feature_output_hook: b, "
            "transcoders: [1]}",
            "transcoders must be a list of files",
        ),
    ],
)
def test_a_configuration_of_something_else_is_refused(
    record: str, said: str, lifelike_copy: Lifelike, no_model_loads: None
) -> None:
    (lifelike_copy.transcoders / "config.yaml").write_text(record)
    assert said in refused(lifelike_copy)


def test_a_set_without_configuration_is_refused(
    lifelike_copy: Lifelike, no_model_loads: None
) -> None:
    (lifelike_copy.transcoders / "config.yaml").unlink()
    assert "no config.yaml in" in refused(lifelike_copy)
    (lifelike_copy.transcoders / "cfg.json").write_text(json.dumps({}))
    assert "a set of SAELens or sparsify's" in refused(lifelike_copy)
