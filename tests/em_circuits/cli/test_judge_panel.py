"""Several judges over the prompts of a store, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_endpoint import FakeEndpoint

from em_circuits.cli.app import run
from em_circuits.organisms import organism_paths
from em_circuits.workspace import Workspace
from pivotal_tokens.agreement import rater_agreement
from pivotal_tokens.store import Store, default_url

pytestmark = pytest.mark.usefixtures("api_key")

LEXICON = f"lexicon:{organism_paths('toy').lexicon}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six prompts that the organism's word list labelled."""
    assert run(["--root", str(tmp_path), "label", "--n", "6", "--no-graphs"]) == 0
    return tmp_path


def panel(root: Path, endpoint: FakeEndpoint, *options: str) -> int:
    asked = ["--judge", LEXICON, "--judge", "openai:o3", "--base-url", endpoint.base_url]
    return run(["--root", str(root), "judge", "panel", *asked, *options])


def test_judges_are_compared_and_what_they_contest_comes_first_in_review(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Workspace, "pair", property(never))
    with Store.open(default_url(root)) as store:
        in_force = {p.prompt_id: store.labels.of(p.prompt_id) for p in store.prompts.all()}
        before = [item.prompt_id for item in store.queue.items("pending")]
    capsys.readouterr()
    with FakeEndpoint("ok*2,disagree,ok,filter,ok") as endpoint:
        assert panel(root, endpoint, "--json", "--resamples", "50") == 0
        found = json.loads(capsys.readouterr().out)
        n = len(endpoint.requests)
        assert panel(root, endpoint) == 0
        assert len(endpoint.requests) == n  # what was said is not asked again
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 79 and "comes first" in shown
    first, second = found["judges"]
    assert first["judge"].startswith("lexicon:") and second["judge"].startswith("openai:o3@")
    assert first["judged"] == 6 and (second["judged"], second["filtered"]) == (5, 1)
    with Store.open(default_url(root)) as store:
        said = {
            judge["judge"]: store.results.judgements_of(in_force, found["pair"], judge["judge"])
            for judge in found["judges"]
        }
        lists = store.results.next_tokens_of(in_force, found["pair"])
        rows = [
            tuple(said[judge][prompt].by_token[token] for judge in said)
            for prompt in said[second["judge"]]
            for token in lists[prompt].token_ids
        ]
        # The coefficients are those of the statistics module over the labels in the store.
        (comparison,) = found["agreement"]
        expected = rater_agreement(rows, ("evil", "safe", "unsure"), resamples=0)
        assert comparison["agreement"]["items"] == len(rows)
        for name in ("percent", "kappa", "ac1", "alpha"):
            value = comparison["agreement"][name]["value"]
            assert value == pytest.approx(getattr(expected, name).value)
        # Disagreement is the mass of the tokens that got two labels, in the model with more.
        masses = {}
        for prompt in said[second["judge"]]:
            one, other = (said[judge][prompt].by_token for judge in said)
            odd = {token for token in one if one[token] != other[token]}
            masses[prompt] = max(
                sum(t.probability for t in of.tokens if t.token_id in odd)
                for of in (lists[prompt].base, lists[prompt].merged)
            )
        contested = {prompt: mass for prompt, mass in masses.items() if mass > 0}
        assert {
            d["prompt_id"]: pytest.approx(d["mass"]) for d in found["disagreements"]
        } == contested
        assert [d["mass"] for d in found["disagreements"]] == sorted(contested.values())[::-1]
        # The review queue begins with the most contested prompt, and holds every contested one.
        order = []
        while (item := store.queue.take("ada", 60)) is not None:
            order.append((item.disagreement, item.prompt_id))
        assert [mass for mass, _ in order] == sorted((m for m, _ in order), reverse=True)
        assert order[0][1] == found["disagreements"][0]["prompt_id"]
        queued = {prompt for _, prompt in order}
        assert {prompt for prompt, mass in contested.items() if mass >= 0.05} <= queued
        assert found["queued"] == len(queued - set(before) - _flagged(store, found["pair"], queued))
        # The first judge's labels count as before, whoever was asked last.
        for prompt, labels in in_force.items():
            now = store.labels.of(prompt)
            assert now.by_token == labels.by_token
            assert {item.author for item in now.labels} == {first["judge"]}


def _flagged(store: Store, pair: str, prompts: set[str]) -> set[str]:
    """Those that stand in the queue because a judge flagged them, or as a control."""
    return {
        item.prompt_id
        for item in store.queue.items()
        if item.prompt_id in prompts and item.reason != "judges disagree"
    }


def test_the_first_judge_counts_though_another_was_asked_before(root: Path) -> None:
    with FakeEndpoint("disagree", cycle=True) as endpoint:
        asked = ["--judge", "openai:o3", "--judge", LEXICON, "--base-url", endpoint.base_url]
        assert run(["--root", str(root), "judge", "panel", *asked]) == 0
    with Store.open(default_url(root)) as store:
        authors = {
            item.author for p in store.prompts.all() for item in store.labels.of(p.prompt_id).labels
        }
        events = {p.prompt_id: len(store.labels.events(p.prompt_id)) for p in store.prompts.all()}
    assert all(author.startswith("openai:o3@") for author in authors)
    with FakeEndpoint("disagree", cycle=True) as endpoint:
        assert run(["--root", str(root), "judge", "panel", *asked]) == 0
    with Store.open(default_url(root)) as store:  # and once more adds nothing
        again = {p.prompt_id: len(store.labels.events(p.prompt_id)) for p in store.prompts.all()}
    assert again == events


def test_a_panel_of_one_or_of_people_or_of_nothing_is_one_line(
    tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, empty = ["--root", str(root), "judge", "panel"], ["--root", str(tmp_path / "no")]
    capsys.readouterr()
    for arguments, says in (
        ([*there, "--judge", LEXICON], "at least two judges"),
        ([*there, "--judge", LEXICON, "--judge", LEXICON], "at least two judges"),
        ([*there, "--judge", LEXICON, "--judge", "human"], "a person is no judge of a panel"),
        ([*there, "--judge", LEXICON, "--judge", "openai:"], "needs a model"),
        ([*there, "abcdef", "--judge", LEXICON, "--judge", "openai:o3"], "abcdef"),
        ([*there, "--pair", "zz", "--judge", LEXICON, "--judge", "openai:o3"], "zz"),
        ([*empty, "judge", "panel", "--judge", LEXICON, "--judge", "openai:o3"], "store"),
    ):
        assert run(arguments) == 2, arguments
        error = capsys.readouterr().err.strip()
        assert says in error and len(error.splitlines()) == 1


def test_prompts_that_got_no_answer_are_asked_by_the_next_start(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeEndpoint("404", cycle=True) as endpoint:
        assert panel(root, endpoint) == 1
    with FakeEndpoint("ok", cycle=True) as endpoint:
        assert panel(root, endpoint, "--only-divergent", "--json") == 0
        assert 0 < len(endpoint.requests) <= 6
    capsys.readouterr()
