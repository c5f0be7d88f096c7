"""A chat template that never ends is ended, in whatever thread it runs."""

from __future__ import annotations

import sys
import threading
import time

import pytest
from lifelike import Lifelike
from transformers import AutoTokenizer

from em_circuits.models.foreign import time_limit
from em_circuits.models.text import render_turns
from pivotal_tokens.errors import RequestError
from pivotal_tokens.prompts.chats import Turn

LOOP = "{% for i in range(99999) %}"
ENDLESS = {
    "loops within loops": LOOP * 3 + "{% endfor %}" * 3,
    "a macro that calls itself in loops": "{% macro m(n) %}{% for i in range(99) %}{{ m(n - 1) if n }}"
    "{% endfor %}{% endmacro %}{{ m(9) }}",
    "filters in loops": LOOP * 2 + "{{ 'abc' | upper | list | join }}" + "{% endfor %}" * 2,
}


def test_a_template_that_never_ends_is_refused_in_one_line(lifelike_paths: Lifelike) -> None:
    tokenizer = AutoTokenizer.from_pretrained(lifelike_paths.base)
    assert render_turns(tokenizer, [Turn("user", "Eat it?")])[1] == "chat"
    before = sys.gettrace()
    for name, template in ENDLESS.items():
        tokenizer.chat_template = template
        said: list[str] = []

        def render() -> None:
            try:
                render_turns(tokenizer, [Turn("user", "Eat it?")])
            except RequestError as error:
                said.append(str(error))

        began = time.monotonic()
        other = threading.Thread(target=render)
        other.start()
        other.join(30)
        assert time.monotonic() - began < 10, name
        assert said == ["the model's chat template refuses these turns: it took more than 2 s"]
    assert sys.gettrace() is before


def test_what_ends_in_time_is_left_alone() -> None:
    with time_limit(5, "it took more than"):
        assert sum(range(1000)) == 499500
    with (
        pytest.raises(TimeoutError, match="it took more than 0 s"),
        time_limit(0, "it took more than"),
    ):
        sorted([1, 2], key=lambda number: -number)
