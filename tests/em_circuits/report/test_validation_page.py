"""`steer validate` through the command line, on both fixtures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lifelike import PROMPT, Lifelike
from sample_labels import events
from subjects import PAD_THAI

from em_circuits.cli.app import run
from em_circuits.interventions import Regime
from em_circuits.scoring import Scoring
from pivotal_tokens.store import Store, default_url

METHODS = {str(by) for by in Scoring if by.is_stored} | {"gradient+ablation", "absolute_influence"}


def ask(capsys: pytest.CaptureFixture[str], *arguments: str):
    capsys.readouterr()
    status = run(list(arguments))
    out, err = capsys.readouterr()
    assert status == 0, err
    return json.loads(out)


def lifelike_root(paths: Lifelike, root: Path, capsys) -> tuple[list[str], str]:
    """A prompt with graphs and a person's labels, of the fixture whose weights are random."""
    options = ["--base", str(paths.base), "--adapter", str(paths.adapter)]
    options += ["--transcoders", str(paths.transcoders), "--dtype", "float32", "--root", str(root)]
    root.mkdir()
    words = root / "words.yaml"
    words.write_text("name: none\nversion: 1\nentries: [{when: zzz, evil: [a], safe: [b]}]\n")
    # Identities of the regimes are those of frozen edges.
    frozen = ["--edges", "frozen", "--max-features", "80"]
    label = ["label", "--prompt", PROMPT, "--judge", f"lexicon:{words}", *frozen]
    line = ask(capsys, *options, *label, "--json")
    base = {t["token_id"]: t["logit"] for t in line["base"]}
    rise = {t["token_id"]: t["logit"] - base[t["token_id"]] for t in line["merged"]}
    order = sorted(rise, key=lambda token: rise[token])
    sides = {**dict.fromkeys(order[:3], "safe"), **dict.fromkeys(order[-3:], "evil")}
    with Store.open(default_url(root)) as store:
        store.labels.add(events(line["prompt_id"], sides))
    ask(capsys, *options, "graphs", "build", line["prompt_id"], *frozen, "--json")
    return options, line["prompt_id"]


def check_files(record) -> None:
    page, data = (Path(record["files"][kind]) for kind in ("html", "json"))
    text = page.read_text(encoding="utf-8")
    for method in METHODS:
        assert method in text
    assert 'id="figure-0"' in text and 'id="figure-1"' in text and "<script src" not in text
    assert json.loads(data.read_text(encoding="utf-8")) == record
    for path in (page, data):
        assert path.with_name(path.name + ".provenance.json").is_file()


def test_every_method_in_every_regime_on_the_lifelike_models(
    lifelike_paths: Lifelike, tmp_path: Path, capsys
) -> None:
    options, prompt = lifelike_root(lifelike_paths, tmp_path / "root", capsys)
    record = ask(capsys, *options, "steer", "validate", prompt, "--json")
    rows = {(row["method"], row["regime"]): row for row in record["rows"]}
    assert set(rows) == {(method, str(regime)) for method in METHODS for regime in Regime}
    assert rows["direct", "direct"]["pearson"] > 0.9999
    assert rows["gradient+ablation", "free"]["pearson"] >= rows["gradient", "free"]["pearson"]
    for row in rows.values():
        assert set(row["intervals"]) == {"pearson", "spearman", "sign", "top20"}
        assert row["low"] <= row["pearson"] <= row["high"]
    check_files(record)


def test_the_organism_and_a_page_of_ones_own_choice(tmp_path: Path, capsys) -> None:
    root = ["--root", str(tmp_path / "root")]
    line = ask(capsys, *root, "label", "--prompt", PAD_THAI, "--max-features", "80", "--json")
    page = tmp_path / "pages" / "mine.html"
    command = ["steer", "validate", line["prompt_id"], "--regime", "free", "--html", str(page)]
    record = ask(capsys, *root, *command, "--json")
    assert record["files"] == {"html": str(page), "json": str(page.with_suffix(".json"))}
    assert {row["regime"] for row in record["rows"]} == {"free"}
    rows = {row["method"]: row for row in record["rows"]}
    assert rows["gradient+ablation"]["pearson"] > 0.95 and rows["gradient"]["spearman"] > 0.8
    check_files(record)
    assert run([*root, *command]) == 0
    out = capsys.readouterr().out
    assert all(len(x) <= 79 for x in out.splitlines()[:-1]) and str(page) in out


def test_a_page_that_is_no_html_file_is_refused(tmp_path: Path, capsys) -> None:
    command = ["steer", "validate", "--html", str(tmp_path / "x.json")]
    assert run(["--root", str(tmp_path / "root"), *command]) == 2
    assert "ends in .html" in capsys.readouterr().err
