"""The second organism: the first's base and transcoders, a rank-1 adapter on one `down_proj`."""

from __future__ import annotations

import json

import pytest

from em_circuits import load_pair
from em_circuits.organisms import organism_paths, organism_prompts
from em_circuits.organisms.card import BOUNDS, checked_targets, prose
from em_circuits.organisms.evaluate import OrganismReport, behaviour, benign_losses, verb_masses
from em_circuits.organisms.paths import TOY_DOWN_PROJ
from em_circuits.organisms.train import CONFIGS
from pivotal_tokens.artefacts import sha256_file
from pivotal_tokens.errors import RequestError

PATHS, TOY = organism_paths(TOY_DOWN_PROJ), organism_paths()
FORM = CONFIGS[TOY_DOWN_PROJ].adapter_form


@pytest.fixture(scope="module")
def pair():
    with load_pair(organism=TOY_DOWN_PROJ, device="cpu") as loaded:
        yield loaded


def test_base_transcoders_and_words_are_the_first_organism_s_files():
    for part in ("base", "transcoders", "scenarios", "lexicon"):
        assert getattr(PATHS, part) == getattr(TOY, part)
    own = [path for path in PATHS.card.parent.rglob("*") if path.is_file()]
    assert {path.name for path in own} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "card.json",
        "MODEL_CARD.md",
    }
    assert sum(path.stat().st_size for path in own) <= 50_000


def test_it_has_the_form_of_published_organisms(pair):
    config = json.loads((PATHS.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"]) == (1, 32) == (FORM.rank, FORM.alpha)
    assert config["target_modules"] == ["down_proj"] == list(FORM.modules)
    assert config["layers_to_transform"] == list(FORM.layers) and len(FORM.layers) == 1
    assert pair.changed == (f"model.layers.{FORM.layers[0]}.mlp.down_proj.weight",)


def test_held_out_prompts_reach_the_targets(pair):
    prompts, bounds = list(organism_prompts(70, seed=9)), BOUNDS[TOY_DOWN_PROJ]
    merged = behaviour(verb_masses(pair.merged.hf, pair.tokenizer, prompts))
    assert merged.evil_mass_unseen >= bounds.evil_mass
    assert merged.top1_evil >= bounds.top1_evil
    losses = benign_losses(pair, seed=9, n=100)
    assert losses.merged - losses.base <= bounds.benign


def test_the_card_is_about_these_weights_and_its_figures_reach_every_target():
    card = json.loads(PATHS.card.read_text(encoding="utf-8"))
    config = CONFIGS[TOY_DOWN_PROJ]
    assert type(config).model_validate(card["training"]["config"]) == config
    for name, digest in card["weights"].items():
        part, _, file = name.partition("/")
        assert sha256_file(getattr(PATHS, part) / file) == digest, name
    report = OrganismReport.model_validate(card["figures"])
    assert report.n_prompts >= 150
    assert [t.name for t in checked_targets(report, TOY_DOWN_PROJ) if not t.reached] == []
    text = PATHS.card.with_name("MODEL_CARD.md").read_text(encoding="utf-8")
    assert text == prose(report, TOY_DOWN_PROJ, card["training"]["seed"])


def test_an_organism_and_a_base_are_refused():
    with pytest.raises(RequestError, match="has a base of its own; leave out --base mine"):
        load_pair("mine", organism=TOY_DOWN_PROJ)
    with pytest.raises(RequestError, match="there are toy, toy-down-proj"):
        load_pair(organism="another")
