"""What the client must know of an error, from the words of many vendors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pivotal_tokens.llm.capabilities import Capabilities
from pivotal_tokens.llm.endpoint_errors import EndpointError, error_in


@pytest.mark.parametrize(
    ("message", "limit", "fits"),
    [
        (
            "3900 tokens asked for (1900 of messages, 2000 of completion), context length of the "
            "model is 2048",
            2000,
            148,
        ),
        (
            "'max_tokens' or 'max_completion_tokens' is too large: 2000. This model's maximum "
            "context length is 2048 tokens and your request has 1900 input tokens "
            "(2000 > 2048 - 1900).",
            2000,
            148,
        ),
        (
            "This model's maximum context length is 8192 tokens. However, you requested 9000 "
            "tokens (7000 in the messages, 2000 in the completion).",
            2000,
            1192,
        ),
        (
            "This endpoint's maximum context length is 32768 tokens. However, you requested about "
            "40000 tokens (30000 of text input, 10000 in the output).",
            10000,
            2768,
        ),
        (
            "max_tokens is too large: 10000. This model supports at most 4096 completion tokens, "
            "whereas you provided 10000.",
            10000,
            4096,
        ),
        (
            "max_tokens: 10000 > 4096, which is the maximum allowed number of output tokens",
            10000,
            4096,
        ),
        ("the request exceeds the available context size (4096 tokens), try it larger", 2000, None),
        (
            "This model's maximum context length is 8192 tokens. However, your messages resulted "
            "in 9000 tokens.",
            2000,
            None,
        ),
        ("there are at most 3 messages", 2000, None),
        ("bad request", 2000, None),
    ],
)
def test_a_limit_is_fitted_to_what_the_error_says(
    message: str, limit: int, fits: int | None
) -> None:
    assert EndpointError(400, message).fitting(limit) == fits


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (200, {"choices": [{"message": {"content": "x"}}], "error": None}, None),
        (200, {"error": {"message": "m", "code": 429}}, (429, "m")),
        (200, {"error": {"message": "m", "code": "529"}}, (529, "m")),
        (200, {"error": "m"}, (502, "m")),
        (200, {"object": "error", "message": "m", "code": 400}, (400, "m")),
        (200, {"choices": [{"error": {"message": "m", "code": 502}}]}, (502, "m")),
        (200, {"error": {"message": "m", "code": 99999}}, (502, "m")),
        (200, {"error": {"message": "m", "code": True}}, (502, "m")),
        (400, {"error": "invalid\nformat"}, (400, "invalid format")),
        (422, {"detail": [{"loc": ["x"], "msg": "m"}]}, (422, "[{'loc': ['x'], 'msg': 'm'}]")),
        (500, "<html>", (500, "<html>")),
        (500, "", (500, "no message")),
        (400, {"error": {"message": "half \ud83d and \0"}}, (400, "half and")),
        (
            429,
            {"error": {"message": "Provider returned error", "metadata": {"raw": "busy"}}},
            (429, "Provider returned error: busy"),
        ),
    ],
)
def test_an_error_is_found_in_any_form(
    status: int, body: Any, error: tuple[int, str] | None
) -> None:
    found = error_in(status, body if isinstance(body, str) else json.dumps(body))
    assert (None if found is None else (found.status, found.message)) == error


@pytest.mark.parametrize(
    ("status", "message", "refused"),
    [
        (400, "this prompt was flagged under the usage policy", True),
        (400, "triggering Azure OpenAI's content management policy", True),
        (400, "rejected as a result of our safety system", True),
        (403, "input was moderated", True),
        (403, "your account was flagged and suspended", False),
        (403, "this API key violates the usage policy", False),
        (403, "no permission", False),
        (429, "flagged for too many requests", False),
        (400, "unsupported value", False),
    ],
)
def test_a_refused_input_is_told_from_a_refused_account(
    status: int, message: str, refused: bool
) -> None:
    assert EndpointError(status, message).refuses_input == refused


def test_what_is_left_out_goes_one_step_at_a_time_and_ends() -> None:
    unknown = EndpointError(400, "kaputt")
    steps, ability = [], Capabilities()
    while (after := ability.after(unknown)) is not None:
        ability = after
        steps.append((ability.form, ability.system))
    assert steps == [("json_object", True), ("plain", True), ("plain", False)]
    assert ability.guessed and ability.sure == Capabilities()
    cold = ability.after(EndpointError(400, "temperature: only the default (1) is supported"))
    assert cold is not None and not cold.sure.temperature and cold.sure.form == "json_schema"
    named = Capabilities().after(EndpointError(400, "this JSON schema cannot be compiled"))
    assert named is not None and not named.guessed and named.sure == named
