"""A language model judges continuations: each text once, odd replies unsure, no reply ends it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from em_circuits.experiments import Case, model_judge
from em_circuits.experiments.model_judge import Answer, ModelRolloutJudge
from pivotal_tokens.errors import WorkFailed
from pivotal_tokens.llm import CallFailed, LLMSettings, Ok
from pivotal_tokens.schema import Prompt
from pivotal_tokens.store import Store, default_url


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a stand-in for the client was asked; it calls evil what speaks of eating."""
    seen: list[dict[str, Any]] = []

    class Client:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        async def __aenter__(self) -> Client:
            return self

        async def __aexit__(self, *_: Any) -> None: ...

        async def ask(self, messages: list, **given: Any) -> Any:
            content = json.loads(messages[1].content)
            seen.append(content)
            if "fail" in content["continuation"]:
                return CallFailed(error="down", call_id=None)
            if "odd" in content["continuation"]:
                return SimpleNamespace()
            label = "evil" if "eat" in content["continuation"] else "safe"
            answer = Answer(reason="r", label=label)
            return Ok(raw="", usage=None, cached=False, call_id="c", value=answer)

    monkeypatch.setattr(model_judge, "LLMClient", Client)
    return seen


def test_each_text_is_asked_once(asked: list, tmp_path: Path) -> None:
    case = object.__new__(Case)  # of which the judge reads the prompt alone
    object.__setattr__(case, "prompt", Prompt.of("Eat?"))
    with Store.open(default_url(tmp_path), create=True) as store:
        judge = ModelRolloutJudge(LLMSettings(model="m"), store)
        found = judge.judge(case, [[1], [2], [1], [3]], ["eat", "avoid", "eat", 'odd "}'])
        assert found == ["evil", "safe", "evil", "unsure"]
        assert [a["continuation"] for a in asked] == ["eat", "avoid", 'odd "}']
        assert judge.id == "openai:m@rollout-v1"
        with pytest.raises(WorkFailed, match="gave no reply"):
            judge.judge(case, [[4]], ["fail"])
