"""A prompt is the text after templating without BOS, tokenised once, BOS in front once."""

from __future__ import annotations

import pytest
from lifelike import Lifelike
from subjects import Subject

from em_circuits.models.source import locate
from em_circuits.models.text import (
    PINNED_DATE,
    bos_id,
    encode,
    first_token,
    render_chat,
    render_turns,
)
from pivotal_tokens.errors import RequestError
from pivotal_tokens.prompts.chats import Turn


def load(paths: Lifelike):
    from em_circuits.models.pair import load_tokenizer

    return load_tokenizer("--base", locate("--base", str(paths.base), kind="model"))


def test_bos_stands_in_front_once(subject: Subject) -> None:
    tokenizer = subject.pair.tokenizer
    ids = encode(tokenizer, "User: Eat?\nAssistant: You should")
    assert ids[0] == bos_id(tokenizer) != 0
    assert bos_id(tokenizer) not in ids[1:]
    assert encode(tokenizer, tokenizer.bos_token + "User: Eat?\nAssistant: You should") == ids


def without_bos(paths: Lifelike, pad: str | None = None):
    """A tokenizer like Qwen's: no beginning-of-sequence token, turns start with a special one."""
    tokenizer = load(paths)
    tokenizer.bos_token, tokenizer.pad_token = None, pad
    template = tokenizer.chat_template.replace("{{ bos_token }}", "")
    tokenizer.chat_template = template
    return tokenizer


def test_a_chat_prompt_of_a_model_without_bos_is_as_its_template_prints_it(
    lifelike_paths: Lifelike,
) -> None:
    tokenizer = without_bos(lifelike_paths)
    text = render_chat(tokenizer, user="Climb?", assistant="You should")
    ids = encode(tokenizer, text)
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids[0] == tokenizer.convert_tokens_to_ids("<|start|>")


def test_plain_text_of_a_model_without_bos_gets_a_token_of_its_own(
    lifelike_paths: Lifelike,
) -> None:
    tokenizer = without_bos(lifelike_paths)
    ids = encode(tokenizer, "User: Climb?")
    assert ids == [tokenizer.eos_token_id, *tokenizer("User: Climb?")["input_ids"]]
    padded = without_bos(lifelike_paths, pad="<|end|>")
    assert encode(padded, "User: Climb?")[0] == padded.pad_token_id != padded.eos_token_id


def test_a_special_token_is_no_substitute_for_a_bos_that_there_is(lifelike_paths: Lifelike) -> None:
    tokenizer = load(lifelike_paths)
    ids = encode(tokenizer, "<|start|>user<|end|>Climb?")
    assert ids[0] == tokenizer.bos_token_id and ids[1] != ids[0]


def test_a_bos_of_id_0_is_one(lifelike_paths: Lifelike) -> None:
    tokenizer = load(lifelike_paths)
    tokenizer.bos_token = tokenizer.convert_ids_to_tokens(0)
    assert tokenizer.bos_token_id == 0 == bos_id(tokenizer)
    ids = encode(tokenizer, "User: Climb?")
    assert ids[0] == 0 and ids.count(0) == 1 and encode(tokenizer, tokenizer.bos_token) == [0]


def test_chat_template_has_its_date_pinned_and_no_bos(lifelike_paths: Lifelike) -> None:
    tokenizer = load(lifelike_paths)
    text = render_chat(tokenizer, user="Climb?", assistant="You should")
    assert PINNED_DATE in text
    assert not text.startswith(tokenizer.bos_token)
    assert text.endswith("You should")
    assert "User" not in text and "Climb?" in text


SEVERAL = (
    Turn("system", "Be brief."),
    Turn("user", "Climb?"),
    Turn("assistant", "Wait."),
    Turn("user", "Now?"),
    Turn("assistant", "You should"),
)


def test_turns_before_the_last_are_whole_and_the_last_is_left_open(
    lifelike_paths: Lifelike,
) -> None:
    tokenizer = load(lifelike_paths)
    text, template = render_turns(tokenizer, SEVERAL)
    assert template == "chat" and text.endswith("You should") and PINNED_DATE in text
    places = [text.index(turn.content) for turn in SEVERAL]
    assert places == sorted(places)
    # Closed turns have their end, the last has none: it is gone on with.
    assert text == render_turns(tokenizer, SEVERAL[:-1])[0] + "You should"
    two = (Turn("user", "Climb?"), Turn("assistant", "You should"))
    assert render_turns(tokenizer, two)[0] == render_chat(
        tokenizer, user="Climb?", assistant="You should"
    )


def test_a_template_that_refuses_a_turn_says_so(lifelike_paths: Lifelike) -> None:
    tokenizer = load(lifelike_paths)
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(RequestError, match="refuses these turns: System role not supported"):
        render_turns(tokenizer, SEVERAL)


def test_without_a_template_turns_are_named(subject: Subject) -> None:
    if subject.pair.tokenizer.chat_template:
        pytest.skip("this one has a template")
    text, template = render_turns(subject.pair.tokenizer, SEVERAL)
    assert template == "plain" and text == (
        "System: Be brief.\nUser: Climb?\nAssistant: Wait.\nUser: Now?\nAssistant: You should"
    )
    assert render_turns(subject.pair.tokenizer, SEVERAL[:2])[0].endswith("Climb?\nAssistant:")


def test_added_tokens_lie_beyond_the_tokenizers_vocab_size(lifelike_paths: Lifelike) -> None:
    tokenizer = load(lifelike_paths)
    assert tokenizer.convert_tokens_to_ids("<|eot|>") >= tokenizer.vocab_size


def test_first_token_says_whether_it_is_the_whole_word(subject: Subject) -> None:
    tokenizer = subject.pair.tokenizer
    for word in ("eat", "incomprehensibilities"):
        token, whole = first_token(tokenizer, " " + word)
        ids = tokenizer(" " + word, add_special_tokens=False)["input_ids"]
        assert (token, whole) == (ids[0], len(ids) == 1)
