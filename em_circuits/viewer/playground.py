"""The steering playground, on the loaded models.

    POST /api/playground  {"prompt", "model", "features": [...], "length"}

The same engine as `steer run` (`em_circuits.interventions.steer`): un-steered, steered and matched
random features in one batch, and one continuation of each with the same random numbers, so that
every difference is due to the intervention. What comes of it is kept like a `steer run`.
The models are loaded on first use.
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
from em_circuits.experiments.analyse import choose_on_prompt
from em_circuits.experiments.kept import Asked, keep
from em_circuits.intervention import MIN_DRAWS, Intervention, Mode
from em_circuits.interventions import (
    ActivationCache,
    SteerResult,
    run_rows,
    steer,
    top_tokens,
)
from em_circuits.interventions.generation import Sampling, generate
from em_circuits.interventions.matched_controls import apply_to
from em_circuits.models import Model
from em_circuits.viewer.body import json_body
from em_circuits.viewer.context import AppContext
from em_circuits.viewer.prompts import HIDDEN
from em_circuits.viewer.rendering import Json
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen, ModelName, Prompt, PromptLabels

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
    top: int | None = Field(default=None, ge=1, le=MOST_FEATURES)
    """Instead: ablate top:N, chosen as everywhere (greedily, to do most together)."""
    length: int = Field(default=16, ge=1, le=LONGEST)
    temperature: float = Field(default=0.7, ge=0, le=5, allow_inf_nan=False)
    seed: int = 0


class Playground:
    """The loaded models; one request at a time."""

    def __init__(self, context: AppContext) -> None:
        self._work = context.work

    def run(self, asked: PlaygroundRequest, labels: PromptLabels) -> dict[str, Any]:
        """Figures and continuations of a prompt, un-steered, steered and under random features.

        Raises:
            RequestError: No such prompt, or a feature that has no place in the model.
        """
        prompt = self._work.store.prompts.get(asked.prompt)
        groups = Contrast.from_labels(labels.by_token)
        changes = [change.intervention() for change in asked.features]
        with self._work.running:
            model = self._work.pair.model(asked.model)
            if asked.top is not None:
                changes = self._top(asked, prompt, asked.top)
            found, why = self._steered(asked, prompt, groups, changes)
            state = ActivationCache.capture(model, self._work.pair.input_ids(prompt))
            rows = [[], changes]
            if found is not None:
                rows.append(apply_to(changes, found.random_places[0]))
            logits = run_rows(model, state, rows)
            sampling = Sampling(
                samples=1,
                max_tokens=asked.length,
                temperature=float(asked.temperature),
                seed=asked.seed,
            )
            texts = generate(model, state, rows, sampling).texts(model)
        conditions = [
            _condition(model, row, groups, labels) | {"continuation": text[0]}
            for row, text in zip(logits, texts, strict=True)
        ]
        control = None
        if found is not None:
            random = found.random_control
            control = {"n": random.n, "spread": random.evil_mass and random.evil_mass.model_dump()}
        return {
            "prompt_id": prompt.prompt_id,
            "model": asked.model,
            "unsteered": conditions[0],
            "steered": conditions[1],
            "random": None if control is None else control | conditions[2],
            "why_no_random": why,
            "changed": [
                {"layer": one.layer, "position": one.position, "feature": one.feature}
                for one in changes
            ],
        }

    def _top(self, asked: PlaygroundRequest, prompt: Prompt, count: int) -> list[Intervention]:
        chosen = choose_on_prompt(self._work, prompt.prompt_id, f"top:{count}", model=asked.model)
        return list(chosen.interventions(Mode.ABLATE))

    def _steered(
        self,
        asked: PlaygroundRequest,
        prompt: Prompt,
        groups: Contrast,
        changes: list[Intervention],
    ) -> tuple[SteerResult | None, str | None]:
        """The changes beside matched random features, kept; or why there are none."""
        if not changes:
            return None, "Nothing is changed."
        work = self._work
        try:
            found = steer(work.pair.model(asked.model), prompt, changes, groups, n_random=MIN_DRAWS)
        except RequestError as error:
            if "random" not in str(error):
                raise
            return None, str(error)
        if found.steered.contrast is not None:
            settings = {"playground": [change.model_dump(mode="json") for change in changes]}
            kept = Asked.of(work, prompt.prompt_id, "steer", model=asked.model, settings=settings)
            keep(work, kept, found.model_dump(mode="json"))
        return found, None


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
            if asked.top is not None and context.hiding(request, prompt.prompt_id):
                raise RequestError(HIDDEN)
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
