"""Sets of SAELens and sparsify, converted, compute what those libraries compute."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from foreign_sets import LAYERS, D, N, drawn, saelens, sparsify
from safetensors.torch import save_file

from em_circuits.models.foreign_transcoders import convert_transcoders, foreign_layers
from em_circuits.models.transcoder_files import TranscoderFiles
from em_circuits.models.transcoders import Transcoders, load_transcoders
from pivotal_tokens.artefacts import provenance_path
from pivotal_tokens.errors import RequestError


def formula(layer: int, x: torch.Tensor, form: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations and output by the libraries' formulas, in float64."""
    held = drawn(layer, skip="skip" in form, threshold="jumprelu" in form)
    held = {name: value.double() for name, value in held.items()}
    x = x.double()
    pre = (x - held["b_dec"] * ("shifted" in form)) @ held["W_enc"] + held["b_enc"]
    acts = torch.relu(pre)
    if "jumprelu" in form:
        acts = acts * (pre > held["threshold"])
    if "topk" in form:
        k = int(form.rsplit("topk", 1)[1])
        values, indices = acts.topk(k, dim=-1)
        acts = torch.zeros_like(acts).scatter(-1, indices, values)
    output = acts @ held["W_dec"] + held["b_dec"]
    return acts, output + x @ held["W_skip"].T if "W_skip" in held else output


TOPK = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 7}}
SOURCES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "SAELens": (lambda p: saelens(p, "transcoder"), "relu"),
    "SAELens skip": (lambda p: saelens(p, "skip_transcoder"), "relu skip"),
    "SAELens JumpReLU": (lambda p: saelens(p, "jumprelu_transcoder"), "jumprelu"),
    "SAELens JumpReLU skip": (lambda p: saelens(p, "jumprelu_skip_transcoder"), "jumprelu skip"),
    "SAELens 5": (lambda p: saelens(p, "standard", apply_b_dec_to_input=True), "relu shifted"),
    "SAELens 5 Top-K": (lambda p: saelens(p, "standard", **TOPK), "topk7"),
    "SAELens Top-K": (lambda p: saelens(p, "topk", k=7), "topk7"),
    "sparsify": (lambda p: sparsify(p), "topk5"),
    "sparsify skip": (lambda p: sparsify(p, skip=True, name="h.{}.mlp"), "skip topk5"),
    # More than ever are above 0: circuit-tracer's own Top-K would let negative ones through.
    "sparsify, all of it": (lambda p: sparsify(p, k=N, name="model.layers.{}.mlp"), f"topk{N}"),
}


def loaded(folder: Path, dtype: torch.dtype = torch.float32, place: str = "gpu") -> Transcoders:
    files = TranscoderFiles.read("--transcoders", str(folder), folder)
    return load_transcoders(files, device=torch.device("cpu"), dtype=dtype, place=place)


@pytest.mark.parametrize("place", ["gpu", "disk"])
@pytest.mark.parametrize("source", list(SOURCES))
def test_a_converted_set_computes_the_formula_of_its_library(
    source: str, place: str, tmp_path: Path
) -> None:
    write, form = SOURCES[source]
    made = convert_transcoders("SOURCE", write(tmp_path / "theirs"), tmp_path / "ours")
    assert (made.layers, made.width, made.d_model) == (LAYERS, N, D)
    ours = loaded(tmp_path / "ours", place=place)
    x = torch.randn(50, D)
    for layer in range(LAYERS):
        acts, output = formula(layer, x, form)
        found = ours[layer].encode(x)
        assert (found - acts).abs().max() < 1e-5
        assert ((found != 0) == (acts != 0)).float().mean() > 0.999
        assert (ours[layer].decode(found, x) - output).abs().max() < 2e-5
        ids = torch.tensor([3, 3, 17])
        alone = ours[layer].encoder(ids.unique()).activations(x[:2], torch.tensor([0, 1]))
        assert (alone - acts[[0, 1], [3, 17]]).abs().max() < 1e-5
        every = ours[layer].encoder(ids.unique()).encode(x)
        assert (every - acts[:, [3, 17]]).abs().max() < 1e-5
        assert torch.equal(ours[layer].decoder(ids), drawn(layer)["W_dec"][ids])
    record = yaml.safe_load((tmp_path / "ours" / "config.yaml").read_text())
    sae = source.startswith("SAELens")
    hooks = record["feature_input_hook"], record["feature_output_hook"]
    expected = ("ln2.hook_normalized", "hook_mlp_out") if sae else ("mlp.hook_in", "mlp.hook_out")
    assert hooks == expected
    assert record.get("model_name") == ("somewhere/base" if sae else None)
    assert provenance_path(tmp_path / "ours" / "config.yaml").is_file()


@pytest.mark.parametrize("source", [name for name in SOURCES if name != "SAELens 5"])
def test_circuit_tracer_computes_the_same(source: str, tmp_path: Path) -> None:
    pytest.importorskip("circuit_tracer")
    from em_circuits.models.replacement import for_circuit_tracer

    write, form = SOURCES[source]
    convert_transcoders("SOURCE", write(tmp_path / "theirs"), tmp_path / "ours")
    theirs = for_circuit_tracer(loaded(tmp_path / "ours"))
    x = torch.randn(20, D)
    for layer in range(LAYERS):
        acts, output = formula(layer, x, form)
        assert (theirs[layer].encode(x) - acts).abs().max() < 1e-5
        assert (theirs[layer](x) - output).abs().max() < 2e-5


def test_bfloat16_stays_as_it_is(tmp_path: Path) -> None:
    source = sparsify(tmp_path / "theirs")
    for layer in range(LAYERS):
        file = source / f"layers.{layer}.mlp" / "sae.safetensors"
        held = {
            "encoder.weight": drawn(layer)["W_enc"].T.contiguous(),
            "encoder.bias": drawn(layer)["b_enc"],
            "W_dec": drawn(layer)["W_dec"],
            "b_dec": drawn(layer)["b_dec"],
        }
        save_file({name: value.bfloat16() for name, value in held.items()}, file)
    convert_transcoders("SOURCE", source, tmp_path / "ours")
    ours = loaded(tmp_path / "ours", torch.bfloat16)
    assert torch.equal(ours[1].W_enc, drawn(1)["W_enc"].T.bfloat16())


def test_sets_that_are_read_here_are_written_in_circuit_tracer_s_layout(tmp_path: Path) -> None:
    from test_transcoder_formats import FORMATS, tensors_of, write

    from em_circuits.models.transcoders import THRESHOLD

    for form in ("gemma-scope", "gemma-scope-2"):
        source = write(tmp_path / form, form, "sets/layer_{}/params")
        made = convert_transcoders("SOURCE", source, tmp_path / f"{form}-ours")
        assert made.gate == "JumpReLU" and made.layers == 4
        ours = loaded(tmp_path / f"{form}-ours")
        for layer in range(4):
            held = tensors_of(layer, **FORMATS[form][1])
            assert torch.equal(ours[layer].W_enc, held["W_enc"])
            assert torch.equal(ours[layer].threshold, held[THRESHOLD])
            assert (ours[layer].W_skip is None) == ("W_skip" not in held)
    with pytest.raises(RequestError, match="in circuit-tracer's layout already"):
        convert_transcoders("SOURCE", tmp_path / "gemma-scope-ours", tmp_path / "again")


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "gated": (lambda p: saelens(p, "gated"), "'gated' is none of SAELens's transcoder"),
    "autoencoder": (
        lambda p: saelens(p, "standard", hook_name_out="blocks.0.ln2.hook_normalized"),
        "'standard' is none of",
    ),
    "no output": (
        lambda p: saelens(p, "transcoder", metadata={"hook_name": "blocks.0.hook_resid_mid"}),
        "does not say what the transcoder reads and writes",
    ),
    "normalised": (
        lambda p: saelens(p, "transcoder", normalize_activations="expected_average_only_in"),
        "fold_activation_norm_scaling_factor",
    ),
    "elsewhere": (
        lambda p: saelens(p, "transcoder", hook_name="blocks.0.attn.hook_z"),
        "'blocks.0.attn.hook_z' is no place that a transcoder reads",
    ),
    "across layers": (
        lambda p: saelens(p, "transcoder", hook_name_out="blocks.7.hook_mlp_out"),
        "reads at layer 0 and writes at 7",
    ),
    "twice": (
        lambda p: saelens(
            p,
            "transcoder",
            hook_name="blocks.0.hook_resid_mid",
            hook_name_out="blocks.0.hook_mlp_out",
        ),
        "layer 0 is there more than once",
    ),
    "no threshold": (lambda p: _retold(saelens(p, "transcoder")), "no threshold"),
    "sparsify autoencoder": (lambda p: sparsify(p, transcode=False), "transcode: true"),
    "groupmax": (lambda p: sparsify(p, activation="groupmax"), "'groupmax' cannot be said"),
    "k": (lambda p: sparsify(p, k=N + 1), "k 41, expected 1 to 40"),
    "another module": (
        lambda p: sparsify(p, name="layers.{}.self_attn"),
        "called by its MLP",
    ),
    "n-gram table": (lambda p: sparsify(p, gram_lookup=True), "gram_lookup"),
    "missing skip": (lambda p: sparsify(p, skip_connection=True), "no W_skip"),
    "nothing": (lambda p: p, "no transcoders of another library"),
}


def _retold(source: Path) -> Path:
    for file in source.rglob("cfg.json"):
        record = json.loads(file.read_text())
        file.write_text(json.dumps(record | {"architecture": "jumprelu_transcoder"}))
    return source


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_has_another_formula_is_refused_by_name(case: str, tmp_path: Path) -> None:
    write, said = REFUSED[case]
    source = tmp_path / "theirs"
    source.mkdir()
    write(source)
    with pytest.raises(RequestError) as caught:
        convert_transcoders("SOURCE", source, tmp_path / "ours")
    assert said in str(caught.value) and str(source) in str(caught.value)
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("gone", [0, 1])
def test_a_missing_layer_is_named(gone: int, tmp_path: Path) -> None:
    source = sparsify(tmp_path / "theirs")
    (source / f"layers.{gone}.mlp" / "sae.safetensors").unlink()
    with pytest.raises(RequestError, match=f"layer {gone} is missing"):
        foreign_layers("SOURCE", source)


def test_layers_of_another_k_are_named(tmp_path: Path) -> None:
    source = sparsify(tmp_path / "theirs")
    file = source / "layers.2.mlp" / "cfg.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"k": 6}))
    with pytest.raises(RequestError, match=r"layer 2: .*layers.2.mlp.* has k 6, layer 0 5"):
        foreign_layers("SOURCE", source)


def test_a_directory_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    with pytest.raises(RequestError, match="is there already"):
        convert_transcoders("SOURCE", sparsify(tmp_path / "theirs"), tmp_path / "ours")
