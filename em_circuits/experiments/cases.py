"""What does an experiment need to know of a prompt before anything is steered?

Labels are those of the store where the prompt has any, else the judge's on the union of both
models' top tokens; the ranking is by gradient through the real model.

    case = Cases(work, judge).of(prompt, "merged")
    case.ranked[:10], case.groups, case.state
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.contrast import Contrast
from em_circuits.experiments.plan import PromptSource
from em_circuits.features import parse_features
from em_circuits.graphs.gradient import feature_scores, mlp_output_gradients
from em_circuits.interventions import PromptState
from em_circuits.interventions.feature_rows import decoder_vectors
from em_circuits.labelling.sources import template_prompts
from em_circuits.models import ModelPair
from em_circuits.models.next_tokens import screen
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import RequestError
from pivotal_tokens.judge import Judge
from pivotal_tokens.schema import Judgement, Label, ModelName, Prompt

Found = tuple[int, int, int]
"""(layer, position, feature id)."""


@dataclass(frozen=True, eq=False)
class Case:
    """One prompt, ready to be steered."""

    prompt: Prompt
    model: ModelName
    labels: Mapping[int, Label]
    labels_from: str
    """``human``, ``judge``, ``mixed`` or the id of the judge that was asked."""
    groups: Contrast
    state: PromptState
    """On the model that is steered."""
    base_logits: Float[Tensor, " vocab"]
    """Of the un-steered base model."""
    scores: Float[Tensor, " active"]
    """Gradient of the evil-minus-safe contrast times activation, of ``state.active``."""

    @property
    def domain(self) -> str | None:
        return self.prompt.category

    @property
    def ranked(self) -> Int64[Tensor, "active 3"]:
        """Active features from the most positive contrast to the most negative."""
        return self.state.active.cpu()[self.scores.argsort(descending=True, stable=True)]

    def choose(self, features: str) -> tuple[Found, ...]:
        """The features that a ``--features`` text means on this prompt."""
        choice = parse_features(features)
        if choice.by == "name":
            return choice.named
        key = {"top": -self.scores, "bottom": self.scores, "abs": -self.scores.abs()}[choice.by]
        order = key.argsort(stable=True)[: choice.count]
        return tuple((a, b, c) for a, b, c in self.state.active.cpu()[order].tolist())


@dataclass(frozen=True)
class Cases:
    """Makes cases from prompts."""

    work: Workspace
    judge: Judge | None
    """Asked where the store has no labels; None: such a prompt is refused."""

    @property
    def pair(self) -> ModelPair:
        return self.work.pair

    def of(self, prompt: Prompt, model: ModelName) -> Case:
        """One prompt under one model.

        Raises:
            RequestError: If no token of it is labelled evil, or none safe.
        """
        ids = self.pair.input_ids(prompt)
        labels, source = self._labels(prompt, ids)
        groups = Contrast.from_labels(labels)
        if not groups.is_defined:
            raise RequestError(
                f"prompt {prompt.prompt_id} has no contrast: {len(groups.evil)} evil and "
                f"{len(groups.safe)} safe tokens; label it (em-circuits review), or leave it out"
            )
        steered = self.pair.model(model)
        state = PromptState.capture(steered, ids)
        weights = groups.weights(len(state.logits))[None]
        gradients = mlp_output_gradients(steered, ids, weights)
        active = state.active.cpu()
        outputs = decoder_vectors(steered, active[:, 0], active[:, 2])
        outputs = outputs * state.activations.float().cpu()[:, None]
        return Case(
            prompt=prompt,
            model=model,
            labels=labels,
            labels_from=source,
            groups=groups,
            state=state,
            base_logits=self.pair.base.next_logits(ids).float(),
            scores=feature_scores(gradients.cpu(), active, outputs)[0],
        )

    def prompts(self, source: PromptSource) -> tuple[Prompt, ...]:
        """The prompts that a plan names, each once.

        Raises:
            RequestError: If it names none.
        """
        found = [self.work.store.prompts.get(prefix) for prefix in source.ids]
        found += [Prompt.of(text, generator="plan") for text in source.texts]
        if source.organism is not None:
            drawn = source.organism
            found += template_prompts(drawn.n, seed=drawn.seed, domains=drawn.domains)
        if not found:
            raise RequestError("the plan names no prompts; give texts, ids or organism")
        return tuple({prompt.prompt_id: prompt for prompt in found}.values())

    def _labels(self, prompt: Prompt, ids: Tensor) -> tuple[Mapping[int, Label], str]:
        stored = self._stored(prompt)
        if stored is not None:
            return stored
        if self.judge is None:
            raise RequestError(f"prompt {prompt.prompt_id} has no labels; run em-circuits label")
        tokens = screen(self.pair, ids)
        outcome = self.judge.judge(prompt, tokens.base, tokens.merged)
        if not isinstance(outcome, Judgement):
            raise RequestError(f"prompt {prompt.prompt_id}: {self.judge.id} gave no usable labels")
        return outcome.by_token, self.judge.id

    def _stored(self, prompt: Prompt) -> tuple[Mapping[int, Label], str] | None:
        """Labels of the store, where there is one and it knows the prompt."""
        try:
            labels = self.work.store.labels.of(
                self.work.store.prompts.get(prompt.prompt_id).prompt_id
            )
        except RequestError:
            return None
        return (labels.by_token, labels.source) if labels.labels else None


def peak_activations(
    states: Sequence[PromptState], features: Sequence[tuple[int, int]]
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
