"""Settings of a language model: its endpoint and its limits.

settings = LLMSettings(model="o3", deadline_s=120)
settings.output_limit       # 10000: a reasoning model thinks in output tokens
"""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from pivotal_tokens.schema import Frozen

OPENAI_URL = "https://api.openai.com/v1"
Role = Literal["system", "user", "assistant"]

_TO_THINK = 10_000
"""Output tokens of a model that thinks in them."""
_REASONING = re.compile(r"(o[1-9]|gpt-5)(\b|-|$)")


class Message(Frozen):
    """One turn of what a model is sent."""

    role: Role
    content: str


class Budget(Frozen, use_attribute_docstrings=True):
    """What the store's ledger may come to, over every call it ever recorded; None: no limit."""

    max_usd: float | None = Field(default=None, gt=0)
    """Most that the store's ledger may come to."""
    max_tokens: int | None = Field(default=None, ge=1)
    """The same, in tokens of all calls."""


class LLMSettings(Frozen, use_attribute_docstrings=True):
    """Settings of calls to one model."""

    model: str = Field(min_length=1)
    base_url: str | None = None
    """OpenAI-compatible endpoint. [default: OpenAI]"""
    max_concurrency: int = Field(default=20, ge=1, le=500)
    """Requests in flight."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """Spaced evenly. [default: no limit]"""
    deadline_s: float = Field(default=120.0, gt=0)
    """Seconds for one question, retries included."""
    price_in: float | None = Field(default=None, ge=0)
    """USD per million input tokens. [default: the table's]"""
    price_out: float | None = Field(default=None, ge=0)
    """USD per million output tokens. [default: the table's]"""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """[default: the endpoint's own]"""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key."""
    max_attempts: int = Field(default=5, ge=1)
    max_output_tokens: int | None = Field(default=None, ge=1)
    """Of one reply, thinking included. [default: 2000, or 10000 for a model that reasons]"""
    read_reasoning: bool = False
    """Read an answer that stands in the reply's reasoning alone."""
    max_body_bytes: int = Field(default=4_000_000, ge=1)
    """A longer reply is cut off and unused."""

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, url: str | None) -> str | None:
        """A key belongs into the environment; an URL is written down in many places."""
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError("must be http://HOST[:PORT]/v1 or https://...")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("must hold no user, password or query: keys come from the environment")
        return url.rstrip("/")

    @property
    def url(self) -> str:
        """Where requests go."""
        return self.base_url or OPENAI_URL

    @property
    def reasons(self) -> bool:
        """A model that thinks in output tokens and takes no temperature (o-series, GPT-5)."""
        return _REASONING.match(self.model.rsplit("/", 1)[-1]) is not None

    @property
    def output_limit(self) -> int:
        """The most output tokens of one reply."""
        return self.max_output_tokens or (_TO_THINK if self.reasons else 2_000)

    @property
    def more_room(self) -> int | None:
        """The limit of a reply that was cut off, asked for again; None where none is larger.

        A model that was not known to think may. A limit that somebody gave is the last word.
        """
        return _TO_THINK if self.max_output_tokens is None and not self.reasons else None
