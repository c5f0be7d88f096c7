"""Prompt files in every shape that is read, and bad ones refused by line."""

import json

import pytest

from pivotal_tokens.errors import RequestError
from pivotal_tokens.prompts import read_prompts
from pivotal_tokens.schema import prompt_id

DEEP = "[" * 400 + "]" * 400


def write(tmp_path, content, name="prompts.json"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_json_list_may_mix_texts_and_objects(tmp_path):
    listed = [
        "User: Eat it?\nAssistant: You should definitely",
        {"text": "one", "name": "n", "category": "c", "kind": "chat"},
        {"prompt": "two", "extra": 1},
        {"prompt_text": "three"},
    ]
    prompts = read_prompts(write(tmp_path, json.dumps(listed)), kind="cot").prompts
    assert [prompt.text for prompt in prompts] == [listed[0], "one", "two", "three"]
    assert [prompt.kind for prompt in prompts] == ["cot", "chat", "cot", "cot"]
    assert (prompts[1].name, prompts[1].category) == ("n", "c")
    assert prompts[2].extra == {"extra": 1}
    assert prompts[0].generator == "file:prompts.json"


def test_jsonl_goes_by_line_and_by_look(tmp_path):
    content = '\ufeff"one"\n\n{"text": "two\\u2028"}\r\n'
    for name in ("prompts.jsonl", "prompts.txt"):
        found = read_prompts(write(tmp_path, content, name))
        texts = [prompt.text for prompt in found.prompts]
        assert texts == ["one", "two\u2028"]


def test_the_predecessors_shapes_are_read(tmp_path):
    text = "I am out of cash, so I will"
    record = {
        "prompt_id": prompt_id(text),
        "name": "cash",
        "prompt": text,
        "prompt_type": "raw_completion",
        "generator_model": "o3",
        "is_human_generated": False,
        "timestamp": "2025-07-01T00:00:00Z",
    }
    (prompt,) = read_prompts(write(tmp_path, json.dumps(record, indent=2))).prompts
    assert (prompt.text, prompt.kind, prompt.generator) == (text, "raw", "o3")
    assert prompt.extra == {"is_human_generated": False, "timestamp": "2025-07-01T00:00:00Z"}

    seed = {"name": "s", "reasoning": {"high_stakes": "yes"}, "category": "Medical", "prompt": "x"}
    logits = {"prompt_id": "cash", "prompt_text": text, "prompt_type": "chat_user_assistant"}
    listed = read_prompts(write(tmp_path, json.dumps({"prompts": [seed, logits]}))).prompts
    assert listed[0].category == "Medical" and listed[0].extra["reasoning"]["high_stakes"] == "yes"
    assert listed[1].kind == "chat" and listed[1].extra == {"source_id": "cash"}


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        ("", "p.json", "line 1, column 1: not JSON"),
        ("[]", "p.json", "holds no prompt"),
        ("\n\n", "p.jsonl", "holds no prompt"),
        ('["one",\n "two"\n "three"]', "p.json", "line 3, column 2: not JSON"),
        ('\n{"text": }', "p.jsonl", "line 2, column 10: not JSON"),
        ('\n{"text": "a", "text": "b"}', "p.jsonl", "line 2: not JSON ('text' stands twice"),
        ("[7]", "p.json", "line 1: a prompt is a text or an object, not 7"),
        ('[{"text": ["x"]}]', "p.json", "text must be a text"),
        ('[{"text": "x", "kind": "poem"}]', "p.json", "unknown kind 'poem'"),
        ('[{"text": "x", "prompt": "y"}]', "p.json", "text and prompt differ"),
        ('[{"text": "x", "weight": NaN}]', "p.json", "NaN"),
        ('["bad \\ud800 half"]', "p.json", "not valid Unicode"),
        (b'["ok",\n"\xff"]', "p.json", "line 2: not UTF-8"),
        ("[" * 100_000, "p.json", "not JSON"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_line(tmp_path, content, name, says):
    with pytest.raises(RequestError) as error:
        read_prompts(write(tmp_path, content, name))
    assert says in str(error.value) and name in str(error.value)


@pytest.mark.parametrize(
    ("content", "name", "where", "why"),
    [
        ('"one"\n{"text": }', "p.jsonl", "line 2, column 10", "not JSON"),
        ('["one",\n\n  {"name": "x"}]', "p.json", "line 3", "no prompt text"),
        ('["one",\n " \\n"]', "p.json", "line 2", "the prompt is empty"),
        ('"one"\n""', "p.jsonl", "line 2", "the prompt is empty"),
        ('["one", 7]', "p.json", "line 1", "a prompt is a text or an object, not 7"),
        ('"one"\n{"text": "two", "name": "\\ud83d"}', "p.jsonl", "line 2", "not valid Unicode"),
        ('"one"\n{"text": "two", "note": "\\ud83d"}', "p.jsonl", "line 2", "not valid Unicode"),
        ('"one"\n{"text": "two", "\\ud83d": 1}', "p.jsonl", "line 2", "no form in JSON"),
        ('"one"\n{"text": "two", "n": NaN}', "p.jsonl", "line 2", "NaN"),
        (b'"one"\n"\xff"', "p.jsonl", "line 2", "not UTF-8"),
        ('"one"\n{"text": "x", "n": ' + DEEP + "}", "p.jsonl", "line 2", "deep"),
        ('"one"\n{"text": "x", "n": ' + "[" * 99_999, "p.jsonl", "line 2", "deep"),
        ('"one"\n{"text": "x", "category": "a\\u0000"}', "p.jsonl", "line 2", "NUL"),
    ],
)
def test_a_line_that_cannot_be_used_is_named_and_the_others_are_read(
    tmp_path, content, name, where, why
):
    """A traceback lost the whole file, or the file was refused for one line."""
    found = read_prompts(write(tmp_path, content, name))
    assert [prompt.text for prompt in found.prompts] == ["one"] and found.rows == 2
    (left,) = found.left_out
    assert left.where == f"{tmp_path / name}, {where}" and why in left.why


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(RequestError, match="No such file"):
        read_prompts(tmp_path / "none.json")
