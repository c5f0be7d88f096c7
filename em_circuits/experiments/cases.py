"""Cases: prompts ready to be steered, with labels, contrast, activations and baseline logits.

Labels are those of the store where the prompt has any, else the judge's on the union of both
models' top tokens.

    case = Cases(work, judge).of(prompt, "merged")
    case.contrast, case.state, case.choose(model, "top:4")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from em_circuits.contrast import Contrast
from em_circuits.experiments.plan import PromptSource
from em_circuits.feature import Feature
from em_circuits.features import choose_features
from em_circuits.interventions import ActivationCache
from em_circuits.labelling.sources import drawn_prompts
from em_circuits.models import Model, ModelPair
from em_circuits.models.next_tokens import screen
from em_circuits.scoring import TO_STEER, Scoring
from em_circuits.workspace import Workspace
from pivotal_tokens.artefacts import content_key
from pivotal_tokens.errors import RequestError, WorkFailed
from pivotal_tokens.judge import Judge
from pivotal_tokens.schema import Frozen, Judgement, Label, ModelName, Prompt
from pivotal_tokens.verdict import decide

Made = TypeVar("Made")


class UnusedPrompt(Frozen):
    """A prompt that could not be used, and why."""

    prompt_id: str
    reason: str


@dataclass(frozen=True, eq=False)
class Case:
    """One prompt, ready to be steered."""

    prompt: Prompt
    model: ModelName
    labels: Mapping[int, Label]
    labels_from: str
    """``human``, ``judge``, ``mixed`` or the id of the judge that was asked."""
    contrast: Contrast
    state: ActivationCache
    """On the model that is steered."""
    base_logits: Float[Tensor, " vocab"]
    """Of the un-steered base model."""

    @property
    def domain(self) -> str | None:
        return self.prompt.category

    @property
    def labels_key(self) -> str:
        """Hash of the labels that a prompt's figures follow from."""
        return content_key(sorted(self.labels.items()))

    def choose(
        self, model: Model, features: str, *, by: Scoring | str = TO_STEER
    ) -> tuple[Feature, ...]:
        """The features that a ``--features`` text means on this prompt."""
        table = choose_features(features, model, self.state, self.contrast, by=by)
        return tuple(Feature(*place) for place in table.features)


@dataclass(frozen=True)
class Cases:
    """Makes cases from prompts."""

    work: Workspace
    judge: Judge | None
    """Labels prompts without labels in the store; None: such a prompt is refused."""
    only_divergent: bool = False
    """Refuse prompts that are not divergent: by their verdict in the store, or by these labels."""

    @property
    def pair(self) -> ModelPair:
        return self.work.pair

    def of(self, prompt: Prompt, model: ModelName) -> Case:
        """One prompt under one model.

        Raises:
            RequestError: If no token of it is labelled evil, or none safe; or it is not divergent
                and only such are wanted.
        """
        ids = self.pair.input_ids(prompt)
        labels, source = self._labels(prompt, ids)
        contrast = Contrast.from_labels(labels)
        if not contrast.is_defined:
            raise RequestError(
                f"prompt {prompt.prompt_id} has no contrast: {len(contrast.evil)} evil and "
                f"{len(contrast.safe)} safe tokens; label it (em-circuits review), or leave it out"
            )
        if self.only_divergent and not self._is_divergent(prompt, ids, labels):
            raise RequestError(f"prompt {prompt.prompt_id} is not divergent")
        return Case(
            prompt=prompt,
            model=model,
            labels=labels,
            labels_from=source,
            contrast=contrast,
            state=ActivationCache.capture(self.pair.model(model), ids),
            base_logits=self.pair.base.next_logits(ids).float(),
        )

    def usable(
        self, prompts: Iterable[Prompt], case: Callable[[Prompt], Made]
    ) -> tuple[dict[str, Made], tuple[UnusedPrompt, ...]]:
        """Prompt id -> case, and the prompts that have none; the models are checked on the first.

        Raises:
            WorkFailed: If none has one.
        """
        found: dict[str, Made] = {}
        left_out: list[UnusedPrompt] = []
        by_id = {prompt.prompt_id: prompt for prompt in prompts}
        for prompt_id, prompt in by_id.items():
            try:
                found[prompt_id] = case(prompt)
            except RequestError as error:
                left_out.append(UnusedPrompt(prompt_id=prompt_id, reason=str(error)))
        if not found:
            raise WorkFailed(f"no prompt can be measured: {left_out[0].reason}")
        self.work.require_healthy(by_id[next(iter(found))])
        return found, tuple(left_out)

    def prompts(self, source: PromptSource) -> tuple[Prompt, ...]:
        """The prompts that a plan names, each once.

        Raises:
            RequestError: If it names none.
        """
        named = [self.work.store.prompts.get(prefix) for prefix in source.ids]
        named += [Prompt.of(text, generator="plan") for text in source.texts]
        if (drawn := source.organism) is not None:
            named += drawn_prompts(self.work, drawn.n, seed=drawn.seed, domains=drawn.domains)
        if not named:
            raise RequestError("the plan names no prompts; give texts, ids or organism")
        return tuple({prompt.prompt_id: prompt for prompt in named}.values())

    def _is_divergent(self, prompt: Prompt, ids: Tensor, labels: Mapping[int, Label]) -> bool:
        try:
            results = self.work.store.results
        except RequestError:  # no store
            stored = {}
        else:
            stored = results.verdicts(prompt.prompt_id, self.pair.key)
        if stored:
            return prompt.prompt_id in self.work.store.queries.divergent(self.pair.key)
        tokens = screen(self.pair, ids)
        return decide(tokens.base, tokens.merged, labels).divergent

    def _labels(self, prompt: Prompt, ids: Tensor) -> tuple[Mapping[int, Label], str]:
        try:
            stored = self.work.store.labels.of(
                self.work.store.prompts.get(prompt.prompt_id).prompt_id
            )
        except RequestError:  # no store, or it does not know the prompt
            stored = None
        if stored is not None and stored.labels:
            return stored.by_token, stored.source
        if self.judge is None:
            raise RequestError(f"prompt {prompt.prompt_id} has no labels; run em-circuits label")
        tokens = screen(self.pair, ids)
        outcome = self.judge.judge(prompt, tokens.base, tokens.merged)
        if not isinstance(outcome, Judgement):
            raise RequestError(f"prompt {prompt.prompt_id}: {self.judge.id} gave no usable labels")
        return outcome.by_token, self.judge.id


def peak_activations(
    states: Sequence[ActivationCache], features: Sequence[tuple[int, int]]
) -> Float[Tensor, "prompt feature"]:
    """Largest activation of each (layer, feature id) on each prompt."""
    peaks = torch.zeros((len(states), len(features)))
    for row, state in enumerate(states):
        places = state.active.cpu()
        for column, (layer, feature) in enumerate(features):
            mine = (places[:, 0] == layer) & (places[:, 2] == feature)
            if mine.any():
                peaks[row, column] = state.activations.float().cpu()[mine].max()
    return peaks
