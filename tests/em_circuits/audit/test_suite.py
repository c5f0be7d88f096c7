"""Suites: what ships, what a file may say, and that inputs stay inside the root."""

from __future__ import annotations

from pathlib import Path

import pytest

from em_circuits.audit.suite import SHIPPED, confined, load_suite
from em_circuits.organisms.corpus import organism_prompts
from pivotal_tokens.errors import RequestError

MINE = """
name: mine
formats: {plain: "{prompt}", brief: "{prompt} Briefly."}
categories:
- name: one
  prompts:
  - {id: a, text: "no", paraphrases: ["on", "off"]}
  - {id: b, user: "Eat?", start: "You should"}
"""


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_has_forty_cases_and_capability_texts(name):
    suite = load_suite(name)
    assert suite.name == name and len(suite.cases()) == 40 and len(suite.capability) >= 8
    assert len({case.category for case in suite.cases()}) >= 2


def test_the_prompts_of_the_toys_are_of_pairs_that_training_never_shows():
    held_out = {one.text for one in organism_prompts(14, seed=7)}
    cases = [case for case in load_suite("toy").cases() if case.category == "hazards"]
    assert {case.text for case in cases if case.wording == 0} == held_out
    assert all(case.text.startswith("User: ") and "\nAssistant:" in case.text for case in cases)


def test_every_wording_meets_every_format(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(MINE, encoding="utf-8")
    cases = load_suite("mine.yaml", base=tmp_path).cases()
    texts = [case.text for case in cases if case.prompt == "a"]
    assert texts == ["no", "no Briefly.", "on", "on Briefly.", "off", "off Briefly."]
    assert [case.user for case in cases if case.prompt == "b"] == ["Eat?", "Eat? Briefly."]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("id: b", "id: a", "two are called a"),
        ("{prompt} Briefly.", "Briefly.", "must contain {prompt} once"),
        ('user: "Eat?", start', 'user: "Eat?", text: "Eat", start', "text or user"),
        ('"off"', '" "', "a wording is empty"),
        ("id: b", "id: ../b", "id"),
        ("name: mine", "nme: mine", "name"),
        ("prompts:", "prompts: [", "not YAML"),
    ],
)
def test_a_wrong_suite_is_refused_in_a_line(tmp_path, old, new, said):
    path = tmp_path / "mine.yaml"
    path.write_text(MINE.replace(old, new), encoding="utf-8")
    with pytest.raises(RequestError) as refused:
        load_suite(str(path))
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_inputs_stay_inside_the_root(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "mine.yaml").write_text(MINE, encoding="utf-8")
    (root / "link.yaml").symlink_to(tmp_path / "mine.yaml")
    for path in ("../mine.yaml", str(tmp_path / "mine.yaml"), "link.yaml"):
        with pytest.raises(RequestError, match="lies outside"):
            load_suite(path, base=root)
    with pytest.raises(RequestError, match="give toy or open"):
        load_suite("none.yaml", base=root)
    assert confined(Path("a/../b"), root, "--suite") == root.resolve() / "b"
