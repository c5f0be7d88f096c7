"""`steer scan` as a person and as a program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from subjects import PAD_THAI

from em_circuits.cli.app import run


def test_a_scan_has_every_target_and_its_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ["--root", str(tmp_path)]
    assert run([*root, "label", "--prompt", PAD_THAI, "--max-features", "50", "--json"]) == 0
    prompt = json.loads(capsys.readouterr().out.splitlines()[-1])["prompt_id"]
    assert run([*root, "steer", "scan", prompt, "--pairs", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == "measured" and found["regime"] == "free"
    labels = [target["label"] for target in found["targets"]]
    for line in found["features"][:50]:
        assert line["measured"] and len(line["effects"]) == len(labels)
        means = {
            side: sum(e for e, label in zip(line["effects"], labels, strict=True) if label == side)
            / labels.count(side)
            for side in ("evil", "safe")
        }
        assert line["contrast"] == pytest.approx(means["evil"] - means["safe"], abs=1e-4)
    pairs = found["pairs"]
    places = [{k: f[k] for k in ("layer", "position", "feature")} for f in pairs["features"]]
    assert places == [{k: f[k] for k in places[0]} for f in found["features"][:3]]
    for i in range(3):
        assert pairs["interaction"][i][i] is None
        for j in set(range(3)) - {i}:
            alone = pairs["features"][i]["effect"] + pairs["features"][j]["effect"]
            assert pairs["interaction"][i][j] == pytest.approx(
                pairs["joint"][i][j] - alone, abs=1e-5
            )
    assert run([*root, "steer", "scan", prompt, "--pairs", "4", "--top", "3"]) == 0
    shown = capsys.readouterr().out
    assert "6 of 6 pairs" in shown and max(map(len, shown.splitlines())) <= 100
    assert run([*root, "steer", "scan", prompt, "--pairs", "1"]) == 2
