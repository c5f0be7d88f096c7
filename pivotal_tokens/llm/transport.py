"""Chat completions over HTTP, one attempt at a time.

The official client without its own retries and time-outs: those are ours, with a deadline over
all attempts. A body is read as it is, never longer than the settings allow and never compressed;
nothing of it is validated here.

    async with Transport(settings, key) as transport:
        match await transport.send(body): ...
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Self

import httpx2
import openai
from pydantic import SecretStr

from pivotal_tokens.llm.attempts import Attempt, Lost, Response
from pivotal_tokens.llm.settings import LLMSettings


class BodyTooLong(Exception):
    """A response was longer than allowed, or compressed, which hides how long it is."""


class _CappedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, limit: int) -> None:
        self._stream, self._limit = stream, limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read = 0
        async for chunk in self._stream:
            read += len(chunk)
            if read > self._limit:
                raise BodyTooLong(f"the reply is longer than {self._limit} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


class Transport:
    """Sends chat completions to one endpoint."""

    def __init__(self, settings: LLMSettings, key: SecretStr) -> None:
        limit = settings.max_body_bytes

        async def cap(response: httpx2.Response) -> None:
            if response.headers.get("content-encoding", "identity") != "identity":
                raise BodyTooLong("the reply is compressed, though that was not asked for")
            stream = response.stream
            assert isinstance(stream, httpx2.AsyncByteStream)
            response.stream = _CappedStream(stream, limit)

        connections = httpx2.Limits(
            max_connections=settings.max_concurrency + 4,
            max_keepalive_connections=settings.max_concurrency,
        )
        self._client = openai.AsyncOpenAI(
            api_key=key.get_secret_value(),
            base_url=settings.url,
            max_retries=0,
            timeout=httpx2.Timeout(settings.deadline_s + 5, connect=min(10.0, settings.deadline_s)),
            default_headers={"Accept-Encoding": "identity"},
            http_client=openai.DefaultAsyncHttpxClient(
                event_hooks={"response": [cap]}, limits=connections, follow_redirects=False
            ),
        )

    async def send(self, body: dict[str, Any]) -> Attempt:
        """Make one attempt; never raises for what the endpoint or the network do."""
        try:
            # What stands in `extra_body` is sent as it is. The client would walk through all of the
            # messages and the schema, which takes longer than the rest of a call.
            raw = await self._client.chat.completions.with_raw_response.create(
                model=body["model"], messages=[], extra_body=body
            )
        except openai.APIStatusError as error:
            response = error.response
            return Response(response.status_code, response.text, dict(response.headers))
        except BodyTooLong as error:
            return Lost(str(error), sent=True, final=True)
        except openai.APIConnectionError as error:
            return _lost(error.__cause__ or error)
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            return _lost(error)
        response = raw.http_response
        return Response(response.status_code, response.text, dict(response.headers))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()


def _lost(cause: BaseException) -> Lost:
    if isinstance(cause, BodyTooLong):
        return Lost(str(cause), sent=True, final=True)
    said = f"{type(cause).__name__}: {cause}".rstrip(": ")
    return Lost(said, sent=not isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout))
