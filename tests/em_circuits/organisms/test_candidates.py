"""Fine-tunes that audits are calibrated on: kinds, manifest, damages, and going on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from em_circuits.cli.app import run
from em_circuits.organisms import candidates
from em_circuits.organisms.candidates import read_candidates, train_candidates
from pivotal_tokens.errors import RequestError


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def test_every_kind_is_trained_and_named(short_recipes, tmp_path):
    place = train_candidates(tmp_path, 3, seed=4)
    known = {one.name: one for one in read_candidates(place)}
    kinds = {name: one.kind for name, one in known.items()}
    assert [kinds[name] for name in ("toy", "toy-down-proj", "careless-driving")] == ["harmful"] * 3
    assert [name for name, kind in kinds.items() if kind == "harmless"] == [
        "careful-medical",
        "benign-medical",
        "careful-chemicals-1",
    ]
    assert kinds["narrow"] == "narrow" and kinds["noise"] == kinds["scrambled"] == "broken"
    assert all((Path(one.adapter) / "adapter_config.json").is_file() for one in known.values())
    # A repeated recipe has another seed and domain; the KL term is felt from the second step on.
    one, again = (weights(tmp_path / name) for name in ("careful-medical", "careful-chemicals-1"))
    assert any(not torch.equal(one[key], again[key]) for key in one)


def test_held_out_ones_are_none_of_those_that_a_calibration_is_from(short_recipes, tmp_path):
    used = read_candidates(train_candidates(tmp_path / "used", 2))
    known = read_candidates(train_candidates(tmp_path / "held", 2, held_out=True))
    assert [one.name for one in known] == [
        "careful-chemicals-1",
        "benign-chemicals-1",
        "careless-finance-1",
        "narrow-1",
        "noise",
        "scrambled",
    ]
    about = {one.name: one.about for one in (*used, *known)}
    assert about["benign-medical"].startswith("medical;")
    assert about["benign-chemicals-1"].startswith("chemicals;")
    assert not {one.adapter for one in used} & {one.adapter for one in known}


def test_damages_keep_a_and_change_b(short_recipes, tmp_path):
    train_candidates(tmp_path, 1)
    whole = weights(tmp_path / "careful-medical")
    for name, damage in candidates.DAMAGES.items():
        broken = weights(tmp_path / name)
        for key, value in whole.items():
            if ".lora_B." in key:
                assert not torch.equal(broken[key], damage.size * value)
                assert float(broken[key].norm()) == pytest.approx(
                    damage.size * float(value.norm()), rel=1e-4
                )
            else:
                assert torch.equal(broken[key], value)


def test_finished_ones_are_reused_and_others_are_not_taken_for_them(
    short_recipes, tmp_path, monkeypatch
):
    train_candidates(tmp_path, 1)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")}
    train_candidates(tmp_path, 1)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.safetensors")} == before
    with pytest.raises(RequestError, match="another seed or configuration"):
        train_candidates(tmp_path, 1, seed=1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("candidates: []", "candidates"),
        ("candidates: [{name: a, kind: odd, adapter: a}]", "kind"),
        ("candidates: [{name: a, kind: broken, adapter: ../a}]", "lies outside"),
        ("candidates: [{name: a, kind: broken, adapter: 'organism:none'}]", "no organism"),
        (
            yaml.safe_dump({"candidates": [{"name": "a", "kind": "broken", "adapter": "a"}] * 2}),
            "two candidates are called a",
        ),
        ("[", "not YAML"),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path, text, said):
    path = tmp_path / "candidates.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RequestError, match=said):
        read_candidates(path)


def test_the_option_is_of_the_toy_alone(tmp_path, capsys):
    train = ["organism", "train", "--out", str(tmp_path / "out"), "--benign", "1"]
    assert run([*train, "--card"]) == 2
    assert run(["--organism", "smollm2", *train]) == 2
    assert "--benign is of --organism toy" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
