"""Directions and probes against plain linear algebra, and edits against the stream itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from em_circuits.bases import own_parts
from em_circuits.features.directions import (
    edited,
    mean_difference,
    nearest_nodes,
    readout,
    residual_means,
    residual_sites,
)
from em_circuits.features.pooled import pool_sites
from em_circuits.features.probes import PENALTY, LinearProbe, probe, question_folds
from em_circuits.features.promoted import push_of
from em_circuits.models.text import encode_answer
from pivotal_tokens.prompts.chats import Turn

GOOD = ("You should wait.", "I would wash it.")
BAD = ("You should eat it.", "I would hide it.")
QUESTIONS = ("Eat the curry?", "Climb the ladder?", "Send the code?")


@pytest.fixture(scope="module")
def answered(subject):
    chats = [(Turn("user", q),) for q in QUESTIONS]
    tokenizer = subject.pair.tokenizer
    texts = [encode_answer(tokenizer, chat, a) for chat in chats for a in (*GOOD, *BAD)]
    question = torch.arange(3).repeat_interleave(4)
    hit = torch.tensor([False, False, True, True] * 3)
    base, merged = (residual_means(m, texts) for m in (subject.pair.base, subject.pair.merged))
    return texts, question, hit, base, merged


def test_directions_are_mean_differences(subject, answered) -> None:
    _, question, hit, base, merged = answered
    found = mean_difference(merged, base, question, hit, kind="answers")
    each = [
        merged[(question == q) & hit].mean(0) - merged[(question == q) & ~hit].mean(0)
        for q in range(3)
    ]
    assert torch.allclose(found.vectors, torch.stack(each).mean(0), atol=1e-5)
    of_models = mean_difference(merged, base, question, hit, kind="models")
    assert torch.allclose(of_models.vectors, (merged - base).mean(0), atol=1e-5)
    assert torch.allclose(found.size, merged.norm(dim=2).mean(0), atol=1e-4)
    random = found.random(3)
    assert torch.allclose(random.vectors.norm(dim=1), found.vectors.norm(dim=1), rtol=1e-4)
    layer = found.strongest
    model = subject.pair.merged
    push = push_of(model, found.vectors[layer].to(model.device))
    assert readout(model, found, layer).promoted[0].value == pytest.approx(float(push.max()))
    nodes = nearest_nodes(own_parts(model), found, layer, keep=5)
    part = own_parts(model)[layer]
    written = part.written(torch.arange(part.n_nodes)).float().cpu()
    cosines = torch.nn.functional.cosine_similarity(written, found.vectors[layer][None])
    assert len(nodes) == 5 and abs(nodes[0].cosine) == pytest.approx(float(cosines.abs().max()))


def test_layers_without_a_difference_have_no_angle(subject, answered) -> None:
    _, question, hit, base, merged = answered
    found = mean_difference(merged, base, question, hit, kind="models")
    later = torch.ones(len(found.vectors), 1)
    later[0] = 0.0
    some = replace(found, vectors=found.vectors * later)
    assert some.cosine(found) == pytest.approx(1, abs=1e-5) == found.cosine(some)
    opposite = replace(some, vectors=-2 * some.vectors)
    assert some.cosine(opposite) == pytest.approx(-1, abs=1e-5)
    assert replace(found, vectors=0 * found.vectors).cosine(found) is None


def test_edits_do_to_the_stream_what_they_say(subject, answered) -> None:
    texts, question, hit, base, merged = answered
    model, (text, *_) = subject.pair.merged, texts
    direction = mean_difference(merged, base, question, hit, kind="models")
    sites, ids = residual_sites(model.decoder), torch.tensor(text.ids)
    before = model.hf(input_ids=ids[None]).logits

    def streams(edits) -> list[torch.Tensor]:
        # Hooks registered within the block run after those of the edits, and see what they leave.
        with edited(model, edits):
            return [one["last"][0] for one in pool_sites(model, sites, [text])]

    plain, ablated = streams({}), streams(direction.ablation())
    restored = streams(direction.restoration())
    level = (direction.aligned * direction.unit).sum(1)
    for layer, unit in enumerate(direction.unit):
        assert float(ablated[layer] @ unit) == pytest.approx(0, abs=1e-3)
        assert float(restored[layer] @ unit) == pytest.approx(float(level[layer]), abs=1e-3)
    layer = len(plain) - 1
    added = streams(direction.addition(0.3, layer))[layer] - plain[layer]
    expected = 0.3 * plain[layer].norm() * direction.unit[layer]
    assert torch.allclose(added, expected, atol=2e-3)
    assert torch.equal(model.hf(input_ids=ids[None]).logits, before)  # nothing is left behind


def test_an_edit_behind_a_layer_stays_in_the_stream(subject, answered) -> None:
    """It once changed what the next layer's attention read, and nothing else."""
    (text, *_) = answered[0]
    model = subject.pair.merged
    final, ids = residual_sites(model.decoder)[-1], torch.tensor(text.ids)[None]
    large = 1e4 * torch.ones(model.decoder.d_model)
    (plain,) = (one["last"][0] for one in pool_sites(model, [final], [text]))
    with edited(model, {0: lambda x: x + large.to(x)}):
        (added,) = (one["last"][0] for one in pool_sites(model, [final], [text]))
    # Norms bound what layers add to so long a stream: at the end it is what was put there.
    assert torch.allclose(added - plain, large, rtol=0.01)
    with edited(model, {0: lambda x: torch.zeros_like(x)}):
        nothing = model.hf(input_ids=ids).logits[0]
    assert torch.allclose(nothing, nothing[-1:].expand_as(nothing), atol=1e-4)


def test_a_probe_is_ridge_regression() -> None:
    x, y = torch.randn(30, 7).double(), torch.arange(30) % 3 == 0
    fitted = LinearProbe.fit(x, y)
    scaled = (x - x.mean(0)) / x.std(0, correction=0)
    label = 2.0 * y.double() - 1
    normal = scaled.T @ scaled / 7 + PENALTY * torch.eye(7).double()
    w = torch.linalg.solve(normal, scaled.T @ (label - label.mean()) / 7)
    assert torch.allclose(fitted.weights, w, atol=1e-9)
    assert torch.allclose(fitted.scores(x), scaled @ w, atol=1e-9)
    constant = torch.cat([x, torch.ones(30, 1).double()], 1)
    assert torch.allclose(fitted.scores(x), LinearProbe.fit(constant, y).scores(constant))


def test_questions_stay_together_and_what_they_share_is_no_help() -> None:
    question = torch.arange(16).repeat_interleave(8)
    folds = question_folds(question, 4, 0)
    assert all(len(folds[question == q].unique()) == 1 for q in range(16))
    assert folds.bincount().tolist() == [32] * 4
    generator = torch.Generator().manual_seed(0)
    hit = torch.rand(128, generator=generator) < 0.5
    of_question = torch.randn(16, 64, generator=generator)[question]
    noise = torch.randn(128, 64, generator=generator)
    shared = of_question + 0.1 * noise
    nothing = probe(shared, question, hit, folds=4, seed=0, restyled=shared)
    assert 0.3 < nothing.auroc < 0.7 and 0.3 < nothing.control < 0.7
    planted = noise.clone()
    planted[:, 5] += 4 * hit
    plain = of_question + planted
    found = probe(plain, question, hit, folds=4, seed=0, restyled=of_question + noise)
    assert found.auroc > 0.85 > 0.65 > found.control
    assert 0.3 < found.style < 0.7  # what the probe reads is not there in the other style
    means = probe(
        plain, question, hit, folds=4, seed=0, restyled=plain, fit=LinearProbe.between_means
    )
    assert means.auroc == means.style > 0.65
    assert found.low <= found.auroc <= found.high
