"""`features mediate` over prompts: one table, one page and one sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from commands import printed, root_after

from em_circuits.cli.app import run
from em_circuits.cli.mediate import _overshoot
from em_circuits.interventions.mediation import CumulativePoint, Mediation

CARRIERS = ("straight", "features", "attention", "remainder")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return root_after(tmp_path_factory, ["label", "--n", "4", "--no-graphs"])


def test_over_prompts(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--root", str(root), "features", "mediate", "--all", "--hold-out", "category"]
    command.append("--heads")
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
    assert "the 20 largest chosen on the prompt itself " in record["sentence"]
    shares = [line["share"] for line in record["features"]]
    assert shares == sorted(shares, reverse=True)
    check_adapter(record["adapter"])
    check_heads(record["heads"])
    page = Path(record["page"]).read_text(encoding="utf-8")
    assert record["adapter"]["sentence"][:40] in page and "Attention heads" in page
    assert record["sentence"][:40] in page and "<script src=" not in page
    assert run([*command, "--top", "3"]) == 0
    out = capsys.readouterr().out
    assert "kept:" in out
    assert out.splitlines()[-1].endswith("validity --all --nodes top:20")


def test_sizes_are_given_and_paths_left_out(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--root", str(root), "features", "mediate", "--all", "--hold-out", "category"]
    capsys.readouterr()
    assert run([*command, "--ids", "30", "--ids", "3", "--no-paths", "--json"]) == 0
    few = json.loads(capsys.readouterr().out)
    assert [p["k"] for p in few["cumulative"]] == [3, 20, 30, None]
    assert few["adapter"] is None and few["adapter_absent"] == "its paths were not asked for"
    assert run([*command, "--heads", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    same = [p for p in whole["cumulative"] if p["k"] in (20, None)]
    mine = [p for p in few["cumulative"] if p["k"] in (20, None)]
    for one, other in zip(mine, same, strict=True):
        assert one["share"] == pytest.approx(other["share"], abs=1e-4)


def check_adapter(adapter: dict[str, Any]) -> None:
    """Parts sum to the shift, and random writes do little beside the adapter's."""
    assert adapter["prompts"] == 4
    parts = {name: adapter["shares"][name] for name in CARRIERS}
    assert sum(part["share"] for part in parts.values()) == pytest.approx(1, abs=0.02)
    assert 0.98 <= adapter["least_complete"] <= adapter["most_complete"] <= 1.02
    for part in parts.values():
        assert part["low"] <= part["share"] <= part["high"]
    assert adapter["alone"]["together"]["share"] == pytest.approx(1, abs=1e-3)
    assert adapter["random"]["together"]["high"] < 0.5
    alone = sum(adapter["alone"][name]["share"] for name in CARRIERS)
    assert adapter["interaction"]["share"] == pytest.approx(1 - alone, abs=1e-3)
    assert adapter["sentence"].startswith("the adapter writes ")
    first, head = adapter["features"][0], adapter["heads"][0]
    assert f"features ({first['layer']}/{first['feature']}, " in adapter["sentence"]
    assert f"heads ({head['layer']}.{head['head']}, " in adapter["sentence"]


def check_heads(heads: dict[str, Any]) -> None:
    """The head that carries most does so where it was not chosen."""
    assert len(heads["heads"]) == 16
    first = heads["heads"][0]
    assert first["alone"]["low"] > heads["heads"][1]["alone"]["high"]
    point = next(p for p in heads["cumulative"] if p["k"] == 1)
    assert point["share"] == pytest.approx(first["alone"]["share"], abs=1e-4)
    assert point["random"]["high"] < point["low"]


def test_one_prompt(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    capsys.readouterr()
    assert run(["--root", str(root), "prompts", "list", "--json"]) == 0
    prompt = json.loads(capsys.readouterr().out.splitlines()[0])["prompt_id"]
    out = printed(capsys, root, "features", "mediate", prompt, "--heads")
    parts = re.search(
        r"writes (\S+)% of the shift straight.*?, (\S+)% through features.*?, (\S+)% through "
        r"attention heads.*?, (\S+)% through what",
        " ".join(out.split()),
    )
    assert parts is not None
    assert sum(map(int, parts.groups())) == pytest.approx(100, abs=3)
    assert re.search(r"^3\.3 +0\.[5-9]", out, re.MULTILINE)
    assert max(map(len, out.splitlines())) <= 90
    assert "In-sample: these features were chosen on the prompt that judges them." in out


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ((0.43, 1.29, 0.45), "The first 10 bring back 1.29, all 100 0.45:"),
        ((0.1, 0.5, 0.55), ""),
        ((0.1, 0.6, 0.55), ""),
        ((None, None, None), ""),
    ],
)
def test_a_choice_that_overshoots_all_is_called_what_it_is(shares, said):
    """Of a real fine-tune the 200 neurons chosen in-sample brought back 1.00, all of them .00."""
    points = [
        CumulativePoint.model_construct(k=k, share=share)
        for k, share in zip((1, 10, 100), shares, strict=True)
    ]
    lines = list(
        _overshoot(Mediation.model_construct(cumulative=tuple(points), direction="sufficiency"))
    )
    assert [line.startswith(said) for line in lines] == [True] * bool(said)


def test_what_makes_no_sense_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--root", str(root), "features", "mediate"]
    for wrong in (
        [],
        ["--all", "abc"],
        ["--all", "--order", "gradient"],
        ["--all", "--random", "4"],
        ["--all", "--ids", "0"],
        ["abc", "--ids", "3"],
        ["abc", "--no-paths"],
        ["nothing"],
    ):
        capsys.readouterr()
        assert run([*base, *wrong]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
