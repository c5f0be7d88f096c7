"""Next tokens: float32 softmax, ranks over the vocabulary with ties by id, the union of both."""

from __future__ import annotations

import pytest
import torch
from subjects import Subject

from em_circuits.models.next_tokens import (
    batches,
    ranks_of,
    screen,
    screen_many,
    top_ids,
    union_of_top,
)


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


def test_a_batch_says_what_each_prompt_alone_says(subject: Subject) -> None:
    """Lengths differ, so rows are padded; a row must not see the padding or its neighbours."""
    ids = subject.input_ids
    prompts = [ids[: len(ids) - cut] for cut in (0, 3, 1, 0, 5, 2)]
    for many, ids_alone in zip(screen_many(subject.pair, prompts), prompts, strict=True):
        alone = screen(subject.pair, ids_alone)
        for batched, single in ((many.base, alone.base), (many.merged, alone.merged)):
            assert [t.token_id for t in batched.top] == [t.token_id for t in single.top]
            for token_id, token in single.by_id.items():
                assert abs(batched.by_id[token_id].probability - token.probability) < 1e-5


def test_batches_hold_like_lengths_and_no_more_tokens_than_allowed() -> None:
    lengths = [9, 2, 50, 3, 2, 9, 8]
    made = list(batches(lengths, max_rows=3, max_tokens=20))
    assert sorted(row for batch in made for row in batch) == list(range(7))
    for batch in made:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= 20
        assert len(batch) <= 3
    assert [2] in made  # longer than allowed: alone


@pytest.mark.parametrize("k", [1, 3, 6])
def test_ties_go_by_token_id_as_a_full_sort_would_have_it(k: int) -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0, 2.0])
    order = torch.sort(logits, descending=True, stable=True).indices
    assert top_ids(logits, k).tolist() == order[:k].tolist()
    assert ranks_of(logits, order).tolist() == [1, 2, 3, 4, 5, 6]
