"""Makes `fake_endpoint` importable from every test, and gives a key to those that ask."""

from __future__ import annotations

import pytest

CANARY = "sk-canary/+9f3A=7c&512'xQ"


@pytest.fixture
def api_key(monkeypatch: pytest.MonkeyPatch) -> str:
    """A key in the environment that must not be found anywhere else, and no proxy."""
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return CANARY
