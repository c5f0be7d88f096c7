"""Contrasts of pooled activations between misaligned and aligned answers, against plain loops."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from em_circuits.bases import own_parts
from em_circuits.bases.part import Part, Stage
from em_circuits.features.pooled import PooledAnswers, _Active, only, pool_answers, pool_sites
from em_circuits.features.responses import ResponseSettings, compare_responses
from em_circuits.models.sites import Site
from em_circuits.models.text import encode, encode_answer, render_turns
from em_circuits.statistics import benjamini_hochberg
from pivotal_tokens.errors import RequestError
from pivotal_tokens.prompts.chats import Turn


@dataclass(frozen=True)
class _Plain(Part):
    """Nodes that write vectors of known lengths."""

    norms: Tensor

    def activations(self, x: Tensor) -> Tensor:
        return x

    def live(self, x: Tensor, ids: Tensor) -> Tensor:
        return x[..., 0]

    def written(self, ids: Tensor, write: int = 0) -> Tensor:
        return self.norms[ids][:, None] * torch.tensor([[0.6, 0.8]])

    def explained(self, x: Tensor) -> Tensor:
        return x


def pooled(values: Tensor, lengths: Tensor, norms: Tensor | None = None) -> PooledAnswers:
    site = Site(nn.Identity(), "output")
    norms = torch.ones(values.shape[1]) if norms is None else norms
    part = _Plain(
        "transcoder", "layer 1", 1, Stage.MLP_INPUT, site, (site,), len(norms), norms=norms
    )
    rows = []
    for row in values.float():
        ids = row.nonzero()[:, 0]
        rows.append((_Active(ids, row[ids], row[ids]),))
    return PooledAnswers((part,), lengths, tuple(rows))


def test_contrasts_p_and_q_are_those_of_plain_loops() -> None:
    question = torch.tensor([0, 0, 0, 1, 1, 2, 2, 3])
    hit = torch.tensor([True, True, False, True, False, False, True, True])  # 3 has one side
    values = torch.randn(8, 3).clamp(min=0.05)
    norms = torch.tensor([1.0, 2.0, 0.5])
    settings = ResponseSettings(hold_out=0, min_answers=1, permutations=5000)
    found = compare_responses(pooled(values, torch.arange(1, 9), norms), question, hit, settings)
    assert (found.n_questions, found.n_held_out, found.exact) == (3, 0, True)
    table = found.table.to_frame().sort_values("feature")

    def contrast(labels: Tensor) -> Tensor:
        each = [
            values[(question == q) & labels].mean(0) - values[(question == q) & ~labels].mean(0)
            for q in (0, 1, 2)
        ]
        return torch.stack(each).mean(0)

    real = contrast(hit)
    assert torch.allclose(torch.tensor(table["contrast"].to_numpy()).float(), real, atol=1e-6)
    assert torch.allclose(
        torch.tensor(table["written"].to_numpy()).float(), real * norms, atol=1e-6
    )
    # Every labelling with as many misaligned answers to each question: 3 * 2 * 2.
    every = []
    for a, b, c in itertools.product((0, 1, 2), (3, 4), (5, 6)):
        labels = torch.ones(8, dtype=torch.bool)
        labels[[a, b, c]] = False
        every.append(contrast(labels).abs())
    p = (torch.stack(every) >= real.abs() - 1e-6).double().mean(0)
    assert torch.tensor(table["p"].to_numpy()).allclose(p)
    assert torch.tensor(table["q"].to_numpy()).allclose(benjamini_hochberg(p))


def planted(seed: int, effect: float) -> tuple[PooledAnswers, Tensor, Tensor]:
    """24 questions with 6 answers; node 0 has the effect, node 1 is the length, 40 are noise."""
    generator = torch.Generator().manual_seed(seed)
    question = torch.arange(24).repeat_interleave(6)
    hit = torch.arange(144) % 2 == 0
    lengths = torch.randint(5, 30, (144,), generator=generator) + 6 * hit.long()
    values = torch.randn(144, 42, generator=generator) + 3 * torch.randn(24, 42)[question]
    values[:, 0] += effect * hit
    values[:, 1] = lengths.float()
    return pooled(values, lengths), question, hit


def test_a_planted_node_is_found_held_out_and_told_from_length() -> None:
    found = compare_responses(*planted(0, 2.0), ResponseSettings(min_answers=1, detector=1))
    frame = found.table.to_frame().set_index("feature")
    discoveries = set(frame.index[frame["q"] < 0.05])
    assert {0, 1} <= discoveries and len(discoveries) <= 5
    assert frame.loc[0, "held_out"] == pytest.approx(2, abs=0.8)
    assert frame.loc[0, "low"] < 2 < frame.loc[0, "high"]
    assert abs(frame.loc[1, "without_length"]) < 1e-9 < abs(frame.loc[1, "contrast"])
    assert found.length_p < 0.01 and found.length_difference > 3
    detector = found.detector
    assert detector.questions == found.n_held_out == 6
    assert detector.best_node == "1/1" and detector.auroc == detector.best_auroc
    assert detector.length_auroc == detector.auroc  # that node is the length


def test_without_an_effect_nothing_is_discovered() -> None:
    values, question, hit = planted(1, 0.0)
    found = compare_responses(values, question, hit, ResponseSettings(min_answers=1))
    frame = found.table.to_frame().set_index("feature").drop(index=1)
    assert (frame["q"] < 0.05).sum() == 0


def test_answers_that_cannot_be_compared_are_refused() -> None:
    values, question, hit = planted(0, 1.0)
    with pytest.raises(RequestError, match="no question has both"):
        compare_responses(values, question, question % 2 == 0, ResponseSettings())
    with pytest.raises(RequestError, match="lower --min-answers"):
        compare_responses(values, question, hit, ResponseSettings(min_answers=1000))


def test_an_answer_begins_where_the_model_began_to_write(subject) -> None:
    tokenizer = subject.pair.tokenizer
    chat = (Turn("user", "Eat the curry?"),)
    prompt = encode(tokenizer, render_turns(tokenizer, chat)[0])
    for answer in ("You should wait.", "  No!\n\nUser: why?", "\U0001f600", "x"):
        text = encode_answer(tokenizer, chat, answer)
        assert list(text.ids[: text.start]) == prompt
        said = tokenizer.decode(text.ids[text.start :], clean_up_tokenization_spaces=False)
        assert said.strip() == answer.strip() and len(text.answer) >= 1


def test_pools_are_those_of_the_answers_positions(subject) -> None:
    model, chat = subject.pair.merged, (Turn("user", "Eat the curry?"),)
    texts = [encode_answer(model.tokenizer, chat, a) for a in ("You should wait.", "no")]
    parts = own_parts(model)
    found = pool_answers(model, parts, texts)
    last = pool_answers(model, parts, only(texts, "last"))
    sites = pool_sites(model, [part.read for part in parts], texts)
    for number, part in enumerate(parts):
        ids, means = found.dense(number, "mean")
        assert found.dense(number, "mean", least=2)[0].numel() <= ids.numel()
        for row, text in enumerate(texts):
            reads = pool_sites(model, [part.read], only([text], "mean"))
            assert torch.allclose(reads[0]["mean"][0], sites[number]["mean"][row], atol=1e-5)
            assert found.n_tokens[row] == len(text.answer)
            at_last = part.activations(sites[number]["last"][row][None].to(model.dtype))[0]
            theirs = last.of_nodes(number, "mean", torch.arange(part.n_nodes))[row]
            assert torch.allclose(at_last.double().cpu(), theirs, atol=1e-3)
        most = found.of_nodes(number, "max", ids)
        assert (most.abs() >= means.abs() - 1e-6).all()
