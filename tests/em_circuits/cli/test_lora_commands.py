"""`lora show` and `lora geometry`: what is printed, stored and drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from adapter_forms import FORMS, write_adapter
from commands import printed, root_after

from em_circuits.cli.app import run
from em_circuits.experiments.lora import GeometryOutput
from em_circuits.models.adapter import LoraAdapter
from em_circuits.organisms.paths import organism_paths


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return root_after(tmp_path_factory, ["label", "--n", "4", "--no-graphs"])


def test_an_adapter_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(organism_paths().adapter)
    assert run(["lora", "show", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert LoraAdapter.model_validate(shown) == LoraAdapter.read(Path(path))
    assert run(["lora", "show", path]) == 0
    out = capsys.readouterr().out
    assert "rank 4, alpha 8" in out and max(map(len, out.splitlines()[1:])) <= 80


def test_what_is_no_adapter_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    paths = organism_paths()
    assert run(["lora", "show", str(paths.base)]) == 2
    assert "full model" in capsys.readouterr().err
    assert run(["--merged", str(paths.base), "lora", "show"]) == 2
    assert "give PATH" in capsys.readouterr().err


def test_geometry_of_the_organism(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--root", str(root), "lora", "geometry"]
    capsys.readouterr()
    assert run([*command, "--json"]) == 0
    found = GeometryOutput.model_validate_json(capsys.readouterr().out)
    assert len(found.ranks) == 32 and len(found.modules) == len(found.spectra) == 8
    assert not found.unexplained and not found.reused
    spearman = found.agreement[0].statistics["spearman"]
    assert found.agreement[0].method == "gradient" and spearman.value >= 0.95
    base, merged = (next(p for p in found.sweep if p.scale == s) for s in (0.0, 1.0))
    assert merged.contrast.value - base.contrast.value == pytest.approx(found.shift.value, abs=1e-4)
    # A random adapter of the same norms does next to nothing of it.
    assert abs(merged.random_contrast.high - base.contrast.value) < 0.2 * found.shift.value
    assert base.random_contrast.value == pytest.approx(base.contrast.value, abs=1e-4)
    first = found.ranks[0]
    assert first.effect.low > 0.5 and first.score_quantile == 1.0
    assert first.effect.value == pytest.approx(sum(first.effects) / len(found.prompts), abs=1e-5)
    assert first.contexts and "«" in first.contexts[0].marked
    sizes = [abs(line.effect.value) for line in found.ranks]
    assert sizes == sorted(sizes, reverse=True)
    integrated = sum(line.integrated for line in found.ranks)
    assert integrated == pytest.approx(found.shift.value, rel=0.03)

    table = pd.read_parquet(found.files["parquet"])
    sides = table.groupby("side").size().to_dict()
    # v and o of two layers write; q, k and v of the second layer read.
    assert sides == {"decoder": 16, "encoder": 4 * 2 * (4 + 3), "upstream": 12}
    assert table["cosine"].abs().is_monotonic_decreasing
    page = Path(found.page).read_text(encoding="utf-8")
    assert found.sentence[:40] in page and "<script src=" not in page
    assert "random, mean" in page

    assert run([*command, "--top", "3"]) == 0
    out = capsys.readouterr().out
    assert "kept:" in out


def test_geometry_of_one_rank(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the form that published organisms have; one rank has no order to agree on."""
    base = organism_paths().base
    adapter = write_adapter(
        base, tmp_path / "a", "em-circuits/organism/base", **FORMS["down_proj of rank 1"]
    )
    command = ["--root", str(tmp_path / "root"), "--adapter", str(adapter)]
    assert run([*command, "label", "--n", "2", "--no-graphs"]) == 0
    capsys.readouterr()
    assert run([*command, "lora", "geometry", "--drop", "1", "--json"]) == 0
    found = GeometryOutput.model_validate_json(capsys.readouterr().out)
    (line,) = found.ranks
    assert (line.module, line.rank, line.layer) == ("model.layers.1.mlp.down_proj", 0, 1)
    assert line.effect.value == pytest.approx(found.shift.value, abs=1e-4)
    assert found.agreement[0].statistics["spearman"].value is None
    assert found.agreement[0].pooled.sign is not None
    assert found.spectra[0].stable_rank == pytest.approx(1)
    assert {a.side for a in found.alignments} == {"decoder", "encoder"}
    assert run([*command, "lora", "geometry", "--drop", "1"]) == 0
    assert "1 rank of 1 module" in capsys.readouterr().out


def test_a_rank_that_was_not_dropped_has_no_effect(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["--root", str(root), "lora", "geometry", "--drop", "5", "--json"]) == 0
    found = GeometryOutput.model_validate_json(capsys.readouterr().out)
    assert [line.effect is None for line in found.ranks] == [False] * 5 + [True] * 27
    left = [abs(line.score) for line in found.ranks[5:]]
    assert left == sorted(left, reverse=True)
    assert max(left) <= min(abs(line.score) for line in found.ranks[:5])


def test_what_makes_no_sense_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["nothing"], ["--random", "3"], ["--drop", "0"]):
        assert (
            len(printed(capsys, root, "lora", "geometry", *wrong, status=2).strip().splitlines())
            == 1
        )
