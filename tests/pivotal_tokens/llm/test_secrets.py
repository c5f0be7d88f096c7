"""A key is in no log, traceback, database, export or provenance, however it is spelled."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import traceback
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from fake_endpoint import FakeEndpoint
from pydantic import SecretStr

from pivotal_tokens.artefacts import write_json, write_provenance
from pivotal_tokens.errors import RequestError
from pivotal_tokens.judge import ModelJudge, persist
from pivotal_tokens.llm import LLMClient, LLMSettings, Message
from pivotal_tokens.llm.secrets import REDACTED, Redactor, redacted_logging
from pivotal_tokens.schema import NextTokenPair, Prompt, Thresholds
from pivotal_tokens.store import Store


def spellings(key: str) -> list[str]:
    """Every form in which a key must not be found; base64 at each alignment, without its ends."""
    forms = [key, quote(key, safe=""), quote_plus(key), repr(key)[1:-1], json.dumps(key)[1:-1]]
    for shift in range(3):
        coded = base64.b64encode(b"x" * shift + key.encode()).decode()
        forms.append(coded[4:-4])
    return [*forms, key.encode().hex(), key[4:-1]]


@pytest.mark.parametrize("before", ["", "a", "ab", "Bearer "])
def test_every_spelling_is_struck_out(before: str) -> None:
    key = "sk-test/+ab'c\"d&1=2"
    redact = Redactor([SecretStr(key)])
    said = [
        f"{before}{key}",
        quote(before + key),
        repr({"key": before + key}),
        json.dumps(before + key),
        base64.b64encode(f"{before}{key} and more".encode()).decode(),
        base64.b64encode(f"{before}{key}".encode()).decode(),
        (before + key).encode().hex(),
    ]
    for text in said:
        cleaned = redact(text)
        assert REDACTED in cleaned, text
        assert not any(form in cleaned for form in spellings(key)), (text, cleaned)
    assert redact("nothing of the kind") == "nothing of the kind"


def test_a_logged_traceback_is_cleaned(api_key: str) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("somebody.else")
    logger.addHandler(handler)  # one that the filter on the root never sees
    try:
        with redacted_logging(Redactor([SecretStr(api_key)])):
            logger.warning("sent %s", {"Authorization": f"Bearer {api_key}"}, stack_info=True)
            try:
                raise ValueError(f"refused: {api_key}")
            except ValueError:
                logger.exception("failed with %r", api_key)
        logger.warning("after")
    finally:
        logger.removeHandler(handler)
    told = stream.getvalue()
    assert told.count(REDACTED) == 3 and "ValueError" in told and "after" in told
    assert not any(form in told for form in spellings(api_key))


def test_blocks_that_end_out_of_turn_leave_nothing_behind(api_key: str) -> None:
    # each client that outlived a later one left its record factory in the chain for ever
    before, redact = logging.getLogRecordFactory(), Redactor([SecretStr(api_key)])
    first, second, third = (redacted_logging(redact) for _ in range(3))
    for block in (first, second, third):
        block.__enter__()
    for block in (second, first):
        block.__exit__(None, None, None)
    record = logging.getLogRecordFactory()("n", 20, "f", 1, "sent %s", (api_key,), None)
    assert record.getMessage() == f"sent {REDACTED}"  # the one that is left still cleans
    third.__exit__(None, None, None)
    assert logging.getLogRecordFactory() is before


@pytest.mark.parametrize("script", ["echo_key", "echo_key,401", "400,ok", "500*9", "hang"])
def test_the_canary_is_nowhere(
    tmp_path: Path, make_pair, api_key: str, caplog: pytest.LogCaptureFixture, script: str
) -> None:
    caplog.set_level(logging.DEBUG)
    lists: NextTokenPair = make_pair({1: 0.8, 2: 0.1}, {1: 0.2, 2: 0.7})
    path, told = tmp_path / "store.sqlite", io.StringIO()
    with FakeEndpoint(script) as endpoint, Store.open(path, create=True) as store:
        settings = LLMSettings(model="o3", base_url=endpoint.base_url, deadline_s=0.7)
        judge = ModelJudge(settings, store=store, pair="p")
        for i in range(2):
            prompt = Prompt.of(f"case {i}")
            store.prompts.add(prompt)
            try:
                judged = judge.judge_prompt(prompt, lists)
                persist(store, "p", [judged], Thresholds())
                write_json(tmp_path / "export.json", judged.model_dump(mode="json"))
                write_provenance(tmp_path / "export.json", inputs={}, config=settings.model_dump())
            except Exception:  # the traceback is what is looked at
                told.write(traceback.format_exc())
        told.write(repr(judge) + repr(judge.__dict__) + str(settings))
        assert any(api_key in seen.authorization for seen in endpoint.requests)  # it was used
    told.write(caplog.text)
    written = [told.getvalue(), *(p.read_bytes().decode("latin-1") for p in tmp_path.iterdir())]
    for text in written:
        assert not any(form in text for form in spellings(api_key))


def test_the_client_shows_no_key(tmp_path: Path, api_key: str) -> None:
    async def run(store: Store, url: str) -> str:
        settings = LLMSettings(model="o3", base_url=url)
        async with LLMClient(settings, store=store) as client:
            await client.ask([Message(role="user", content="hello")], purpose="test")
            return repr(client) + repr(vars(client))

    with FakeEndpoint() as endpoint, Store.open(tmp_path / "s.sqlite", create=True) as store:
        shown = asyncio.run(run(store, endpoint.base_url))
    assert not any(form in shown for form in spellings(api_key))


def test_a_key_in_an_url_is_refused_and_a_broken_one_named(tmp_path: Path, monkeypatch) -> None:
    for url in ("http://user:secret@host/v1", "http://host/v1?key=secret", "host/v1"):
        with pytest.raises(ValueError, match="must"):
            LLMSettings(model="o3", base_url=url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-with\nbreak")
    with (
        Store.open(tmp_path / "s.sqlite", create=True) as store,
        pytest.raises(RequestError, match="cannot be sent") as error,
    ):
        LLMClient(LLMSettings(model="o3"), store=store)
    assert "sk-with" not in str(error.value)
