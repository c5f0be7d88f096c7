"""The steering playground, on the loaded models.

    POST /api/playground  {"prompt", "model", "features": [...], "length"}

One batched forward pass, un-steered and steered, and one continuation of each with the same random
numbers, so that every difference is due to the intervention. The models are loaded on first use.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from em_circuits.contrast import Contrast
from em_circuits.interventions import ActivationCache, Intervention, Mode, run_rows, top_tokens
from em_circuits.interventions.generation import Sampling, generate
from em_circuits.models import Model
from em_circuits.viewer.body import json_body
from em_circuits.viewer.context import AppContext
from em_circuits.viewer.rendering import Json
from pivotal_tokens.schema import Frozen, ModelName, PromptLabels

MOST_FEATURES = 50
LONGEST = 64


class Change(Frozen):
    """What becomes of one feature."""

    layer: int = Field(ge=0)
    position: int | None = None
    """None is every position, generated ones too."""
    feature: int = Field(ge=0)
    mode: Mode = Mode.SCALE
    value: float = Field(default=0.0, allow_inf_nan=False)

    def intervention(self) -> Intervention:
        """As the engine takes it."""
        value = None if self.mode is Mode.ABLATE else float(self.value)
        return Intervention(
            layer=self.layer,
            position=self.position,
            feature=self.feature,
            mode=self.mode,
            value=value,
        )


class PlaygroundRequest(Frozen):
    """Body of a request: the prompt, the changes, and how to sample."""

    prompt: str = Field(max_length=12)
    model: ModelName = "merged"
    features: list[Change] = Field(default=[], max_length=MOST_FEATURES)
    length: int = Field(default=16, ge=1, le=LONGEST)
    temperature: float = Field(default=0.7, ge=0, le=5, allow_inf_nan=False)
    seed: int = 0


class Playground:
    """The loaded models and the caches of recent prompts; one request at a time."""

    def __init__(self, context: AppContext) -> None:
        self._context = context
        self._lock = context.work.running
        self._states: dict[tuple[str, str], ActivationCache] = {}

    def run(self, asked: PlaygroundRequest, labels: PromptLabels) -> dict[str, Any]:
        """Figures and continuations of a prompt, un-steered and steered.

        Raises:
            RequestError: No such prompt, or a feature that has no place in the model.
        """
        prompt = self._context.store.prompts.get(asked.prompt)
        with self._lock:
            pair = self._context.work.pair
            model = pair.model(asked.model)
            key = (prompt.prompt_id, asked.model)
            if key not in self._states:
                if len(self._states) >= MOST_FEATURES:
                    self._states.pop(next(iter(self._states)))
                self._states[key] = ActivationCache.capture(model, pair.input_ids(prompt))
            state = self._states[key]
            rows = [[], [change.intervention() for change in asked.features]]
            logits = run_rows(model, state, rows)
            sampling = Sampling(
                samples=1,
                max_tokens=asked.length,
                temperature=float(asked.temperature),
                seed=asked.seed,
            )
            texts = generate(model, state, rows, sampling).texts(model)
        groups = Contrast.from_labels(labels.by_token)
        conditions = [_condition(model, row, groups, labels) for row in logits]
        return {
            "prompt_id": prompt.prompt_id,
            "model": asked.model,
            "unsteered": conditions[0] | {"continuation": texts[0][0]},
            "steered": conditions[1] | {"continuation": texts[1][0]},
        }


def routes(context: AppContext) -> list[BaseRoute]:
    """``POST /api/playground``."""
    ground = Playground(context)

    async def run(request: Request) -> Response:
        body = await json_body(request)
        try:
            asked = PlaygroundRequest.model_validate(body)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise HTTPException(400, f"{where}: {first['msg']}.") from error

        def answer() -> dict[str, Any]:
            prompt = context.store.prompts.get(asked.prompt)
            return ground.run(asked, context.labels(request, prompt.prompt_id))

        return Json(await run_in_threadpool(answer))

    return [Route("/api/playground", run, methods=["POST"])]


def _condition(model: Model, logits: Any, groups: Contrast, labels: PromptLabels) -> dict[str, Any]:
    row = logits[None]
    known, measured = bool(groups.evil or groups.safe), groups.value(row)
    top = [
        {
            "token_id": t.token_id,
            "text": t.text,
            "probability": t.probability,
            "label": labels.by_token.get(t.token_id),
        }
        for t in top_tokens(model, logits)
    ]
    return {
        "evil_mass": float(groups.evil_mass(row)[0]) if known else None,
        "contrast": None if measured is None else float(measured[0]),
        "top": top,
    }
