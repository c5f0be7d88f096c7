"""`transcoders train`, `convert` and `check`: text, sets of other libraries, reconstruction."""

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


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    drawn = list(documents(40, "corpus", CorpusConfig(turns=(1.0,), header=0.0)))
    (folder / "plain.txt").write_text("\n\n".join(drawn[:10]))
    rows: list[dict] = [{"text": one} for one in drawn[10:20]]
    for one in drawn[20:]:
        user, answer = one.removeprefix("User: ").split("\nAssistant: ")
        turns = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
        rows.append({"messages": turns})
    (folder / "more.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


SMALL = ("--features", "16", "--k", "4", "--steps", "6", "--batch", "32", "--layers", "1")


def test_a_trained_set_is_taken_as_transcoders(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "set"
    command = ["transcoders", "train", "--text", str(corpus), *SMALL, "--out", str(out)]
    assert run(command) == 0
    said = capsys.readouterr().out
    assert "MLPs of these layers replaced" in said
    assert run([*command, "--json"]) == 0  # it stands already
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((out / "report.json").read_text())
    assert report["text"] == f"{corpus}, 31 documents" and report["target"] == "base"
    assert run(["--organism", "toy", "--transcoders", str(out), "transcoders", "check"]) == 0
    assert run([*command, "--k", "3"]) == 2
    assert "another seed or configuration" in capsys.readouterr().err


def test_a_difference_is_of_labelled_prompts_and_no_set_of_the_base(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = ["--root", str(tmp_path)], tmp_path / "set"
    command = [*root, "transcoders", "train", "--difference", "--text", str(corpus), *SMALL]
    assert run([*command, "--out", str(out)]) == 2
    assert "no store at" in capsys.readouterr().err and not out.exists()
    assert run([*root, "label", "--n", "2", "--no-graphs"]) == 0
    assert run([*command, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "share of the shift over 2 prompts" in said and "exact" in said
    assert "| exact |" in (out / "REPORT.md").read_text()
    assert run(["--transcoders", str(out), "transcoders", "check"]) == 2
    assert "are of the difference between two models" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--k", "40", "--features", "30"], "--k 40 is more than the 30"),
        (["--layers", "1,x"], "give layers such as 3,5-7"),
        (["--layers", "2-4"], "the model has layers 0 to 3"),
        (["--text", "empty"], "has no text; give a file, or a folder"),
        (["--text", "bad.jsonl"], "bad.jsonl, line 2: no object with text or messages"),
        (["--text", "latin.txt"], "latin.txt is not UTF-8"),
        (["--text", "short.txt"], "too short to hold a part out"),
        (["--text", "long.txt", "--batch", "90000"], "shorter than a batch of 90000"),
        (["--out", "taken"], "--out taken is there already"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_training_that_cannot_be_is_refused_in_one_line(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("taken").mkdir()
    Path("taken/file").touch()
    Path("bad.jsonl").write_text('{"text": "a"}\n{"texts": "b"}\n')
    Path("latin.txt").write_bytes(b"caf\xe9")
    Path("short.txt").write_text("Short.")
    Path("long.txt").write_text("Eat the pad thai. " * 900)
    assert run(["transcoders", "train", "--out", "new", *words]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
