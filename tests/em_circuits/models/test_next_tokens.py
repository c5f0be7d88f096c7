"""Next tokens: float32 softmax, ranks over the vocabulary with ties by id, the union of both."""

from __future__ import annotations

import torch
from subjects import Subject

from em_circuits.models.next_tokens import ranks_of, screen, top_ids, union_of_top


def test_ties_go_by_token_id() -> None:
    logits = torch.tensor([1.0, 3.0, 3.0, 2.0, 3.0])
    assert top_ids(logits, 4).tolist() == [1, 2, 4, 3]
    assert ranks_of(logits, torch.tensor([0, 1, 2, 3, 4])).tolist() == [5, 1, 2, 4, 3]


def test_the_union_lists_each_token_once() -> None:
    base, merged = torch.tensor([5.0, 4, 3, 2, 1]), torch.tensor([1.0, 9, 3, 8, 0])
    assert union_of_top(base, merged, 2).tolist() == [0, 1, 3]


def test_figures_are_those_of_the_real_models(subject: Subject) -> None:
    tokens = screen(subject.pair, subject.input_ids)
    assert tokens.base.by_id.keys() == tokens.merged.by_id.keys()
    for model, found in zip(subject.pair.models, (tokens.base, tokens.merged), strict=True):
        logits = model.next_logits(subject.input_ids).float()
        p = logits.softmax(-1)
        order = sorted(range(len(p)), key=lambda i: (-float(logits[i]), i))
        assert [t.token_id for t in found.top] == order[:10]
        for token in found.tokens:
            assert token.probability == float(p[token.token_id])
            assert token.logit == float(logits[token.token_id])
            assert order[token.rank - 1] == token.token_id
