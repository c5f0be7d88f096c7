"""`transcoders convert` and `transcoders check`: sets of other libraries, files, reconstruction."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from foreign_sets import saelens, sparsify
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from em_circuits.cli.app import run
from em_circuits.models.transcoder_check import TranscoderReport
from em_circuits.organisms.corpus import CorpusConfig, documents
from em_circuits.organisms.paths import TOY, organism_paths


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "passages.txt"
    passages = [one.replace("\n", " ") for one in documents(6, "check", CorpusConfig())]
    path.write_text("\n".join(passages))
    return path


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return Path(shutil.copytree(organism_paths(TOY).transcoders, tmp_path / "set"))


def checked(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> TranscoderReport:
    assert run([*words, "--json"]) == status
    return TranscoderReport.model_validate_json(capsys.readouterr().out)


@torch.no_grad()
def test_figures_are_those_of_the_plain_formula(
    text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = checked(capsys, "transcoders", "check", "--text", str(text))
    paths = organism_paths(TOY)
    model = AutoModelForCausalLM.from_pretrained(paths.base)
    tokenizer = AutoTokenizer.from_pretrained(paths.base)
    held = load_file(paths.transcoders / "layer_2.safetensors")
    mlp, x, y = model.model.layers[2].mlp, [], []

    def keep(_mlp: object, args: tuple, out: torch.Tensor) -> None:
        x.append(args[0][0])
        y.append(out[0])

    mlp.register_forward_hook(keep)
    for passage in text.read_text().splitlines():
        ids = tokenizer(passage, return_tensors="pt").input_ids
        bos = torch.tensor([[tokenizer.bos_token_id]])
        model(ids if ids[0, 0] == bos else torch.cat([bos, ids], 1))
    reads = torch.cat([one[1:] for one in x])
    writes = torch.cat([one[1:] for one in y])
    pre = reads @ held["W_enc"].T + held["b_enc"]
    acts = pre * (pre > held["activation_function.threshold"])
    missed = (writes - acts @ held["W_dec"] - held["b_dec"]).square().sum()
    layer = found.quality[2]
    assert found.positions == len(reads) and found.ok
    assert layer.fvu == pytest.approx(
        float(missed / (writes - writes.mean(0)).square().sum()), 1e-3
    )
    assert layer.l0 == pytest.approx(float((acts != 0).sum(1).float().mean()), 1e-3)
    assert layer.dead == int(((acts != 0).sum(0) == 0).sum())
    assert layer.fits is None


def test_layers_in_the_wrong_order_are_named(
    own: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = own / "layer_1.safetensors", own / "layer_2.safetensors"
    kept = one.read_bytes(), two.read_bytes()
    one.write_bytes(kept[1]), two.write_bytes(kept[0])
    command = ("transcoders", "check", str(own), "--text", str(text))
    found = checked(capsys, *command, status=1)
    assert [layer.fits for layer in found.quality] == [None, 2, 1, None] and not found.ok
    said = [check.found for check in found.checks if not check.ok]
    assert said == [
        f"layer {i}: {own}/layer_{i}.safetensors explains the MLP of {3 - i}" for i in (1, 2)
    ]


def test_numbers_that_are_none_are_named(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for layer, name in ((1, "W_dec"), (3, "b_enc")):
        held = load_file(own / f"layer_{layer}.safetensors")
        held[name].view(-1)[0] = torch.nan
        save_file(held, own / f"layer_{layer}.safetensors")
    found = checked(capsys, "transcoders", "check", str(own), status=1)
    said = [check.found for check in found.checks if not check.ok]
    assert said == [
        f"layer {layer}: {name} holds NaN or infinite numbers, in {own}/layer_{layer}.safetensors"
        for layer, name in ((1, "W_dec"), (3, "b_enc"))
    ]


def test_another_base_is_told(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = own / "config.yaml"
    config.write_text(config.read_text().replace("em-circuits/organism/base", "org/other-1b"))
    found = checked(capsys, "--organism", "toy", "transcoders", "check", str(own))
    told = [check for check in found.checks if not check.ok]
    assert [(check.found, check.expected) for check in told] == [("org/other-1b", "base")]
    (own / "layer_3.safetensors").unlink()
    assert (
        run(["transcoders", "check", str(own)]) == 0
    )  # no base given: of what depth, nobody knows
    capsys.readouterr()
    assert run(["--organism", "toy", "transcoders", "check", str(own)]) == 2
    assert "layer 3 is missing" in capsys.readouterr().err


def test_a_converted_set_of_another_width_is_refused_for_this_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, write in (("a", lambda p: saelens(p, "skip_transcoder")), ("b", sparsify)):
        source, out = write(tmp_path / name), tmp_path / f"{name}-out"
        assert run(["transcoders", "convert", str(source), "--out", str(out), "--json"]) == 0
        made = json.loads(capsys.readouterr().out)
        assert made["path"] == str(out) and made["layers"] == 3
        assert run(["transcoders", "check", str(out)]) == 0
        assert "3 layers of 40 features" in capsys.readouterr().out
        assert run(["--organism", "toy", "transcoders", "check", str(out)]) == 2
        assert "are 12 wide, the model is 128 wide" in capsys.readouterr().err
    command = ["transcoders", "convert", str(source), "--out", str(tmp_path / "c")]
    assert run([*command, "--model-name", "org/base"]) == 0
    assert "of org/base" in capsys.readouterr().out
    # What is not converted yet says how.
    assert run(["transcoders", "check", str(source)]) == 2
    assert f"em-circuits transcoders convert {source} --out DIR" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe\xff"])
def test_a_text_of_nothing_is_refused(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(content)
    assert run(["transcoders", "check", "--text", str(file)]) == 2
    assert f"--text {file} is" in capsys.readouterr().err
