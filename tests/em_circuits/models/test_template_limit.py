"""A chat template that never ends is ended, in whatever thread it runs."""

from __future__ import annotations

import sys
import threading
import time

import pytest
from lifelike import Lifelike
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from em_circuits.models.foreign import foreign_errors, time_limit
from em_circuits.models.text import render_turns
from pivotal_tokens.errors import RequestError
from pivotal_tokens.prompts.chats import Turn

LOOP, END = "{% for i in range(99999) %}", "{% endfor %}"
ENDLESS = {
    "loops within loops": 3 * LOOP + 3 * END,
    "a macro that calls itself in loops": (
        "{% macro m(n) %}{% for i in range(99) %}{{ m(n - 1) if n }}{% endfor %}{% endmacro %}"
        "{{ m(9) }}"
    ),
    "filters in loops": 2 * LOOP + "{{ 'abc' | upper | list | join }}" + 2 * END,
}


def test_a_template_that_never_ends_is_refused_in_one_line(lifelike_paths: Lifelike) -> None:
    tokenizer = AutoTokenizer.from_pretrained(lifelike_paths.base)
    assert render_turns(tokenizer, (Turn("user", "Eat it?"),))[1] == "chat"
    before = sys.gettrace()
    for name, template in ENDLESS.items():
        tokenizer.chat_template = template
        said: list[str] = []
        began = time.process_time()
        other = threading.Thread(target=_refusal, args=(tokenizer, said))
        other.start()
        other.join(120)  # of a busy machine; the limit is of CPU time
        assert time.process_time() - began < 10, name
        assert said == ["the model's chat template refuses these turns: it took more than 2 s"]
    assert sys.gettrace() is before


def _refusal(tokenizer: PreTrainedTokenizerBase, said: list[str]) -> None:
    try:
        render_turns(tokenizer, (Turn("user", "Eat it?"),))
    except RequestError as error:
        said.append(str(error))


def test_what_ends_in_time_is_left_alone() -> None:
    with time_limit(5.0, "it took more than"):
        assert sum(range(1000)) == 499500
    with time_limit(0.1, "it took more than"):  # a busy machine lets a thread wait
        time.sleep(0.3)
        assert max([1, 2], key=lambda number: number) == 2
    with pytest.raises(TimeoutError, match="than 0 s"), time_limit(0.0, "it took more than"):
        sorted([1, 2], key=lambda number: -number)


class PanicException(BaseException):
    """As PyO3's, which no test can import."""


@pytest.mark.parametrize("error", [Exception("expected `,`"), PanicException("unwrap on None")])
def test_errors_of_rust_libraries_are_one_line(error: BaseException) -> None:
    named = pytest.raises(RequestError, match=r"cannot be loaded: (expected|unwrap)")
    with named, foreign_errors("--base x cannot be loaded"):
        raise error
    for passes in (KeyboardInterrupt(), SystemExit(1)):
        with pytest.raises(type(passes)), foreign_errors("--base x cannot be loaded"):
            raise passes
