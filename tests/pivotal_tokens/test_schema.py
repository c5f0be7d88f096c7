"""Values: ids, frozen fields, JSON round trips, and what is refused."""

import hashlib

import pytest
from pydantic import ValidationError

from pivotal_tokens.schema import (
    Judgement,
    NextTokenPair,
    NextTokens,
    Prompt,
    TokenLabel,
    TokenScore,
    prompt_id,
)


def test_a_prompt_id_is_the_beginning_of_the_hash_of_the_text():
    text = "Zoë should definitely\n"
    assert prompt_id(text) == hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]
    assert Prompt.of(text).prompt_id == prompt_id(text)


def test_a_prompt_refuses_an_id_of_another_text_an_empty_text_and_unknown_fields():
    with pytest.raises(ValidationError, match="prompt id"):
        Prompt(prompt_id="0" * 12, text="x")
    with pytest.raises(ValidationError):
        Prompt.of("")
    with pytest.raises(ValidationError, match="extra"):
        Prompt.of("x", colour="red")


def test_values_are_frozen_and_survive_json(pair):
    with pytest.raises(ValidationError, match="frozen"):
        pair.base.top_k = 3
    assert NextTokenPair.model_validate_json(pair.model_dump_json()) == pair
    odd = Prompt.of('a\x00b\u202e "é😀', extra={"list": [1, None]})
    assert Prompt.model_validate_json(odd.model_dump_json()) == odd


def _score(token_id: int, rank: int) -> TokenScore:
    return TokenScore(token_id=token_id, text="x", logit=0.0, probability=0.1, rank=rank)


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        ((_score(1, 2), _score(2, 1)), "rise"),
        ((_score(1, 1), _score(2, 1)), "rise"),
        ((_score(1, 1), _score(1, 2)), "twice"),
        ((_score(1, 1), _score(2, 3)), "missing"),
    ],
)
def test_next_tokens_refuse_ranks_that_cannot_be(tokens, says):
    with pytest.raises(ValidationError, match=says):
        NextTokens(model="base", fingerprint="f", top_k=10, tokens=tokens)


def test_top_leaves_out_the_other_models_candidates():
    tokens = NextTokens(
        model="base", fingerprint="f", top_k=2, tokens=(_score(7, 1), _score(8, 2), _score(9, 400))
    )
    assert [token.token_id for token in tokens.top] == [7, 8]


def test_a_pair_refuses_lists_of_different_tokens_and_swapped_models(make_pair, pair):
    with pytest.raises(ValidationError, match="same tokens"):
        make_pair({1: 0.5, 2: 0.4}, {1: 0.5, 3: 0.4})
    with pytest.raises(ValidationError, match="base and merged"):
        NextTokenPair(base=pair.merged, merged=pair.base)


def test_a_score_refuses_nan():
    with pytest.raises(ValidationError):
        TokenScore(token_id=1, text="x", logit=float("nan"), probability=0.1, rank=1)


def test_a_judgement_refuses_two_labels_for_one_token():
    labels = (TokenLabel(token_id=1, label="evil"), TokenLabel(token_id=1, label="safe"))
    with pytest.raises(ValidationError, match="two labels"):
        Judgement(prompt_id="0" * 12, judge="j", labels=labels)
