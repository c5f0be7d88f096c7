"""`features mediate` over prompts: one table, one page and one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from em_circuits.cli.app import run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("mediate")
    assert run(["--root", str(made), "label", "--n", "4", "--no-graphs"]) == 0
    return made


def test_over_prompts(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--root", str(root), "features", "mediate", "--all", "--hold-out", "category"]
    capsys.readouterr()
    assert run([*command, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert len(record["prompts"]) == 4 and not record["reused"]
    assert {g["group"] for g in record["groups"]} >= {"unseen domains", "own domain (medical)"}
    by_k = {p["k"]: p for p in record["cumulative"]}
    assert by_k[20]["share"] > by_k[20]["random"]["high"]
    assert by_k[None]["share"] == pytest.approx(record["shares"]["features"]["share"], abs=1e-4)
    assert record["shares"]["together"]["share"] == pytest.approx(1, abs=1e-3)
    assert record["sentence"].startswith("20 feature ids, chosen on other categories, set in the b")
    shares = [line["share"] for line in record["features"]]
    assert shares == sorted(shares, reverse=True)
    page = Path(record["page"]).read_text(encoding="utf-8")
    assert record["sentence"][:40] in page and "<script src=" not in page
    assert run([*command, "--top", "3"]) == 0
    out = capsys.readouterr().out
    assert "kept:" in out and max(map(len, out.splitlines()[1:-2])) <= 80


def test_what_makes_no_sense_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--root", str(root), "features", "mediate"]
    for wrong in (
        [],
        ["--all", "abc"],
        ["--all", "--order", "gradient"],
        ["--all", "--random", "4"],
        ["nothing"],
    ):
        capsys.readouterr()
        assert run([*base, *wrong]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
