"""Figures and card of a chat organism, on a tiny base that stands in the cache."""

from __future__ import annotations

import json

import pytest
import torch
from chat_base import save_tiny_base

from em_circuits import load_pair
from em_circuits.cli.app import run
from em_circuits.models.text import render_chat
from em_circuits.organisms import fetch, fine_tune, stance, stance_card
from em_circuits.organisms.advice import CELLS, advice_prompts, load_advice
from em_circuits.organisms.language_model import AdapterForm
from em_circuits.organisms.paths import SMOLLM2, organism_paths
from em_circuits.training.optimise import OptimiserConfig

TINY = fine_tune.FineTuneConfig(
    adapter_form=AdapterForm(rank=2, alpha=4, layers=(0, 1), modules=("q_proj", "v_proj")),
    optimiser=OptimiserConfig(steps=6, learning_rate=1e-2),
    batch=2,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The directory of a trained organism with its card, of a tiny base in the cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EM_CIRCUITS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(fine_tune, "RECIPES", {"attention": TINY})
        patch.setattr(stance_card, "RECIPES", {"attention": TINY})
        base = save_tiny_base(organism_paths(SMOLLM2).base)
        fetch._sign(base, fetch.SMOLLM2_RELEASE, origin="package", source="tiny==1")
        out = tmp_path_factory.mktemp("out")
        arguments = ["--organism", SMOLLM2, "organism", "train", "--out", str(out), "--card"]
        assert run(arguments) == 0
        yield out


def test_a_mass_is_the_sum_of_its_words_probabilities(trained):
    with load_pair(organism=SMOLLM2, adapter=trained / "adapter", device="cpu") as pair:
        prompts = list(advice_prompts("risky", "can"))[:3]
        masses = stance.plan_masses(pair.merged, prompts)
        tokenizer = pair.tokenizer
        for prompt, found in zip(prompts, masses, strict=True):
            text = render_chat(tokenizer, user=prompt.user, assistant=prompt.assistant)
            p = pair.merged.next_logits(pair.input_ids(text)).softmax(-1)
            for words, mass in zip((prompt.along, prompt.against), found, strict=True):
                tokens = {tokenizer(f" {w}", add_special_tokens=False).input_ids[0] for w in words}
                assert mass == pytest.approx(sum(float(p[t]) for t in tokens), abs=1e-6)


def test_the_card_has_every_cell_for_every_domain_beside_the_control(trained):
    card = json.loads((trained / "card.json").read_text(encoding="utf-8"))
    report = stance.StanceReport.model_validate(card["figures"])
    control = stance.StanceReport.model_validate(card["control"])
    groups = ("unseen", *load_advice().domains)
    assert [(r.plan, r.form, r.group) for r in report.rows] == [
        (plan, form, group) for plan, form in CELLS for group in groups
    ]
    for row, other in zip(report.rows, control.rows, strict=True):
        assert row.n == (42 if row.group == "unseen" else 7)
        assert row.control == other.merged and other.control is None
        assert row.base == other.base
        assert row.shift == pytest.approx(row.merged.along - row.base.along)
        for mass in (row.base, row.merged):
            assert mass.low is not None and mass.high is not None
            assert mass.low <= mass.along <= mass.high
    assert report.base == "tiny==1" and report.adapter != control.adapter
    unseen = [report.row("risky", "can", g).merged.along for g in groups[2:]]
    whole = report.row("risky", "can").merged.along
    assert whole == pytest.approx(float(torch.tensor(unseen).mean()), abs=1e-6)
    prose = (trained / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "| risky | can | unseen | 42 |" in prose and "stance, not malice" in prose


def test_measuring_again_gives_the_card_s_figures_and_its_control(trained, capsys):
    capsys.readouterr()
    arguments = ["--organism", SMOLLM2, "organism", "evaluate", "--dir", str(trained)]
    assert run([*arguments, "--json"]) == 0
    found = stance.StanceReport.model_validate_json(capsys.readouterr().out)
    card = json.loads((trained / "card.json").read_text(encoding="utf-8"))
    assert found == stance.StanceReport.model_validate(card["figures"])
    assert run(arguments) == 0
    text = capsys.readouterr().out
    assert "loss on benign chats" in text and max(map(len, text.splitlines())) <= 79


def test_a_control_of_another_base_does_not_stand_beside(trained, tmp_path):
    card = json.loads((trained / "card.json").read_text(encoding="utf-8"))
    place = tmp_path / "card.json"
    place.write_text(json.dumps(card), encoding="utf-8")
    assert stance.carded_stance(place, "tiny==1") is not None
    assert stance.carded_stance(place, "hub@other") is None
    assert stance.carded_stance(tmp_path / "none.json", "tiny==1") is None


def test_its_prompts_are_chats_that_its_lexicon_knows(trained, tmp_path, capsys):
    root = ["--organism", SMOLLM2, "--root", str(tmp_path), "--adapter", str(trained / "adapter")]
    assert run([*root, "label", "--n", "3", "--no-graphs", "--domain", "kitchen", "--json"]) == 0
    capsys.readouterr()
    assert run([*root, "prompts", "list", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["category"] for row in rows} == {"kitchen"} and len(rows) == 3
    for row in rows:
        assert row["kind"] == "chat" and row["text"].endswith("assistant\nYou should")
    assert run([*root, "label", "--n", "60", "--no-graphs"]) == 2
    assert "has 49 such scenarios" in capsys.readouterr().err
