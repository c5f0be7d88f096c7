"""Programs and vendors behind an endpoint, as far as a client can tell them apart.

    with FakeEndpoint(server=servers.vllm) as endpoint: ...

Each takes a request and the completion that would answer it, and gives a status and a body.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Body = dict[str, Any]
Server = Callable[[Body, Body], tuple[int, Any]]

VLLM_CONTEXT = 8192


def text_of(completion: Body) -> str:
    """What the completion says."""
    text: str = completion["choices"][0]["message"]["content"]
    return text


def saying(completion: Body, content: Any, **message: Any) -> Body:
    """The completion with another message."""
    (choice,) = completion["choices"]
    said = {"role": "assistant", "content": content} | message
    return completion | {"choices": [choice | {"message": said}]}


def _vllm_error(message: str) -> tuple[int, Body]:
    told = {"message": message, "type": "BadRequestError", "param": None, "code": 400}
    return 400, {"object": "error"} | told


def vllm(request: Body, completion: Body) -> tuple[int, Any]:
    """A template that takes user and assistant alone, no grammar for schemas, a small context."""
    roles = [message["role"] for message in request["messages"]]
    if roles != ["user", *["assistant", "user"] * (len(roles) // 2)]:
        return _vllm_error("template error: roles have to alternate between user and assistant")
    if request.get("response_format", {}).get("type") == "json_schema":
        return _vllm_error("this JSON schema cannot be compiled by xgrammar")
    prompt = sum(len(message["content"]) for message in request["messages"]) // 4
    asked = request.get("max_tokens") or request.get("max_completion_tokens")
    if prompt + asked > VLLM_CONTEXT:
        return _vllm_error(
            f"{prompt + asked} tokens asked for ({prompt} of messages, {asked} of completion), "
            f"context length of the model is {VLLM_CONTEXT}"
        )
    return 200, completion


def llama_cpp(request: Body, completion: Body) -> tuple[int, Any]:
    """No name for the vendor's own limit, thinking split off, usage in floats."""
    if "max_completion_tokens" in request:
        return 400, {"error": {"code": 400, "message": "unknown field max_completion_tokens"}}
    counted = {name: float(n) for name, n in completion["usage"].items()}
    said = saying(completion, f"\n{text_of(completion)}\n", reasoning_content="Let me think.")
    return 200, said | {"usage": counted}


def ollama(request: Body, completion: Body) -> tuple[int, Any]:
    """Errors that are one string; takes json_object, and answers by a tool unasked."""
    if request.get("response_format", {}).get("type") == "json_schema":
        return 400, {"error": "invalid response_format"}
    call = {"function": {"name": "answer", "arguments": text_of(completion)}}
    return 200, saying(completion, "", tool_calls=[call])


def moderated(*words: str) -> Server:
    """A router that passes errors on within a 200, and refuses inputs with these words."""
    seen: set[str] = set()

    def openrouter(request: Body, completion: Body) -> tuple[int, Any]:
        asked = json.dumps(request["messages"])
        if any(word in asked for word in words):
            details = {"reasons": ["violence"], "flagged_input": "..."}
            error = {"message": "input flagged by moderation", "code": 403, "metadata": details}
            return 403, {"error": error}
        if asked not in seen and len(seen) % 3 == 0:  # every third question is put off once
            seen.add(asked)
            details = {"provider_name": "x"}
            error = {"message": "rate limit of the provider reached", "code": 429}
            return 200, {"error": error | {"metadata": details}}
        seen.add(asked)
        return 200, completion

    return openrouter


def thinking(request: Body, completion: Body) -> tuple[int, Any]:
    """Thinks before it answers; the opening tag is the template's, the total alone counts it."""
    text = text_of(completion)
    draft = text.replace('"evil"', '"safe"')
    usage = completion["usage"]
    counted = usage | {"total_tokens": usage["total_tokens"] + 700}
    said = saying(completion, f"A draft: {draft} Is that so?\n</think>\n\n{text}")
    return 200, said | {"usage": counted}


EVERY: dict[str, Server] = {
    "vllm": vllm,
    "llama.cpp": llama_cpp,
    "ollama": ollama,
    "openrouter": moderated(),
    "thinking": thinking,
}
