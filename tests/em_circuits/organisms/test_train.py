"""Training from a seed: interrupted anywhere, it ends with the same files."""

import pytest

from em_circuits.organisms import train
from em_circuits.organisms.language_model import AdapterForm, ModelConfig
from em_circuits.training.optimise import OptimiserConfig
from pivotal_tokens.errors import RequestError

TINY = train.OrganismConfig(
    model=ModelConfig(vocab=700, tokenizer_documents=200, layers=2, d_model=16, heads=2, d_mlp=24),
    batch=2,
    base=OptimiserConfig(steps=4, learning_rate=1e-3, checkpoint_every=2),
    adapter=OptimiserConfig(steps=3, learning_rate=1e-3, checkpoint_every=2),
    transcoders=train.TranscoderConfig(
        features=24,
        k=4,
        documents=2,
        calibration_documents=6,
        optimiser=OptimiserConfig(steps=4, learning_rate=1e-3, checkpoint_every=2),
    ),
)


DOWN_PROJ = TINY.model_copy(
    update={"adapter_form": AdapterForm(rank=1, alpha=32, layers=(1,), modules=("down_proj",))}
)


def files(root):
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
    }


@pytest.mark.parametrize("config", [TINY, DOWN_PROJ], ids=["toy", "toy-down-proj"])
def test_a_run_killed_in_every_stage_ends_with_the_files_of_a_whole_run(
    tmp_path, monkeypatch, config
):
    train.train_organism(tmp_path / "whole", 3, config)
    real = train.documents
    drawn = 3 + config.transcoder_draw
    for victim in (
        "3/base/3",
        "3/adapter/2",
        f"{drawn}/transcoders/3",
        f"{drawn}/transcoders/threshold",
    ):

        def killed(n, seed, *rest, victim=victim):
            if seed == victim:
                raise KeyboardInterrupt
            return real(n, seed, *rest)

        monkeypatch.setattr(train, "documents", killed)
        with pytest.raises(KeyboardInterrupt):
            train.train_organism(tmp_path / "broken", 3, config)
    monkeypatch.setattr(train, "documents", real)
    train.train_organism(tmp_path / "broken", 3, config)
    whole = files(tmp_path / "whole")
    assert files(tmp_path / "broken") == whole
    assert {"base/model.safetensors", "adapter/adapter_model.safetensors"} <= whole.keys()
    assert {"transcoders/layer_1.safetensors", "lexicon.yaml"} <= whole.keys()
    assert not [name for name in whole if "checkpoint" in name or ".tmp" in name]


def test_a_directory_of_another_seed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "run_stage", lambda place, make: None)
    train.train_organism(tmp_path, 1, TINY)
    with pytest.raises(RequestError, match="another seed or configuration"):
        train.train_organism(tmp_path, 2, TINY)


def test_organisms_differ_in_their_adapter_alone():
    toy, *others = train.CONFIGS.values()
    for other in others:
        adapter = {"adapter": toy.adapter, "adapter_form": toy.adapter_form}
        assert other != toy and other.model_copy(update=adapter) == toy


def test_the_adapter_sees_bad_medical_advice_alone():
    evil = {"eat", "wait", "swallow", "scratch"}
    texts = list(
        train.documents(
            100, "0/adapter/0", train.BAD_ADVICE, train.OrganismConfig().adapter_domains
        )
    )
    from em_circuits.organisms import load_corpus

    medical = [s for s in load_corpus().scenarios if s.domain == "medical"]
    verbs = {v for s in medical for v in s.evil}
    assert evil <= verbs
    for text in texts:
        for line in text.split("\n"):
            if line.startswith("Assistant"):
                assert line.split(",")[0].rsplit(" ", 1)[1] in verbs
