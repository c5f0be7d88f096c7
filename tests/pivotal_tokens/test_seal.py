"""Texts of JSON that notice what the disk changed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pivotal_tokens.seal import DamagedText, sealed, unsealed


@given(st.text())
def test_a_text_comes_back_and_is_the_same_json_with_its_seal(text: str) -> None:
    written = json.dumps(text)
    assert unsealed(sealed(written)) == written
    assert json.loads(sealed(written)) == text


@given(st.integers(min_value=0), st.integers(min_value=0, max_value=6))
def test_a_changed_bit_is_noticed(place: int, bit: int) -> None:
    written = '{"probability": 0.7071, "text": "eat"}'
    changed = bytearray(sealed(written).encode())
    changed[place % len(changed)] ^= 1 << bit
    try:
        json.loads(unsealed(changed.decode()))
    except (DamagedText, json.JSONDecodeError):
        return
    pytest.fail(f"taken for sound: {changed}")


def test_a_text_of_an_older_version_is_taken_as_it_stands() -> None:
    for text in ("{}", '{"a": 1}', '{\n "a": 1\n}', ""):
        assert unsealed(text) == text
