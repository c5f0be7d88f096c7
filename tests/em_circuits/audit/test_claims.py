"""Claims against artefacts; the documents' own among them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from em_circuits.audit.claims import check_claims, figure_at
from em_circuits.cli.app import run
from pivotal_tokens.artefacts import write_json, write_provenance

DOCS = Path(__file__).parents[3] / "docs"


def claim(folder: Path, **changes: str) -> Path:
    given = {
        "sentence": '"a share of .84 (.80 to .9)"',
        "document": "text.md",
        "artefact": "found.json",
        "figure": "rows.name=b.share.value",
        "value": '".84"',
        "interval": "[.80, .9]",
        "low": "rows.name=b.share.low",
        "high": "rows.name=b.share.high",
        **changes,
    }
    rows = [{"name": n, "share": {"value": v, "low": 0.796, "high": 0.9}} for n, v in AB]
    write_json(folder / "found.json", {"rows": rows, "name": "x", "yes": True})
    write_provenance(folder / "found.json", inputs={}, config={})
    (folder / "text.md").write_text("It has\na share of .84\n(.80 to .9).", encoding="utf-8")
    lines = [f"{name}: {value}" for name, value in given.items() if value]
    path = folder / "claims.yaml"
    path.write_text("claims:\n- " + "\n  ".join(lines) + "\n", encoding="utf-8")
    return path


AB = (("a", 0.1), ("b", 0.8352))


def test_a_claim_that_holds(tmp_path):
    (found,) = check_claims(claim(tmp_path))
    assert found.problem is None and found.found == 0.8352 and found.said == ".84"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"value": '".835"', "sentence": "of .835 (.80 to .9)", "document": ""}, None),
        ({"value": '".85"', "sentence": "of .85 (.80 to .9)", "document": ""}, "says .85"),
        ({"interval": "[.79, .9]", "sentence": ".84 (.79 to .9)", "document": ""}, "says .79"),
        ({"figure": "rows.name=c.share.value"}, "no number at rows.name=c.share.value"),
        ({"figure": "name"}, "no number at name"),
        ({"figure": "yes"}, "no number at yes"),
        ({"artefact": "other.json"}, "is not there"),
        ({"sentence": '"a share of .84 (.80 to .91)"'}, "does not say .9"),
        ({"sentence": '"another share of .84 (.80 to .9)"'}, "does not say so"),
        ({"document": "none.md"}, "cannot be read"),
    ],
)
def test_a_claim_that_does_not_hold_says_why(tmp_path, changes, said):
    (found,) = check_claims(claim(tmp_path, **changes))
    if said is None:
        assert found.problem is None
    else:
        assert found.problem is not None and said in found.problem


def test_an_artefact_that_changed_holds_no_claim(tmp_path):
    path = claim(tmp_path)
    (tmp_path / "found.json").write_text('{"rows": []}', encoding="utf-8")
    (found,) = check_claims(path)
    assert found.problem == "found.json has changed since it was written"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("claims: []", "claims"),
        ("[", "give a YAML file of claims"),
        ("claims:\n- {sentence: x, artefact: a, figure: f, value: many}", "value"),
        ("claims:\n- {sentence: x, artefact: a, figure: f, value: 1, low: l}", "belong together"),
    ],
)
def test_a_file_that_holds_no_claims_is_refused(tmp_path, capsys, text, said):
    path = tmp_path / "claims.yaml"
    path.write_text(text, encoding="utf-8")
    assert run(["verify", "--claims", str(path)]) == 2
    assert said in capsys.readouterr().err


def test_the_command_fails_with_the_first_that_does_not_hold(tmp_path, capsys):
    assert run(["verify", "--claims", str(claim(tmp_path)), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    path = claim(tmp_path, value='".85"', sentence="of .85 (.80 to .9)", document="")
    assert run(["verify", "--claims", str(path)]) == 1
    assert "1 of 1 claims do not hold" in capsys.readouterr().err


def test_a_number_in_a_list():
    assert figure_at({"a": [1, 2.5]}, "a.1") == 2.5
    with pytest.raises(KeyError):
        figure_at({"a": [1]}, "a.1")


def test_the_claims_of_the_documents_hold():
    found = check_claims(DOCS / "claims.yaml")
    assert [one for one in found if one.problem] == [] and len(found) >= 5
