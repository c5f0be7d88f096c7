"""Target requests: texts, stored rollouts, spans of tokens and directions, as somebody types them.

    request = TargetRequest(continuation=" eat it now", against=" avoid it")
    target = request.build(work, prompt)               # None where nothing is asked for

Checked before anything is loaded; it becomes a `Target` once there is a tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import model_validator

from em_circuits.models.files import tensor_shapes
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen, Prompt, Rollout

if TYPE_CHECKING:
    from torch import Tensor

    from em_circuits.target import Target
    from em_circuits.workspace import Workspace

FREE = "free"
"""Stands for the token of a rollout that follows no candidate."""


class TargetRequest(Frozen, use_attribute_docstrings=True):
    """What is measured in place of the contrast of labelled next tokens.

    Raises:
        RequestError: If a text is empty, both are equal, two targets are asked for, or a file holds
            no vector.
    """

    continuation: str | None = None
    """Target: log-probability of this text after the prompt (mind the leading space), in place of
    labelled next tokens."""
    against: str | None = None
    """Minus that of this text."""
    rollouts_judged: bool = False
    """Target: mean log-probability of the stored rollouts (of either model) that were judged evil
    minus that of the safe ones (label --rollouts)."""
    answer: str | None = None
    """Target: log-probability of one stored rollout, as MODEL/TOKEN/SAMPLE: merged/1043/0, or
    merged/free/0 for one that follows no candidate."""
    span: str | None = None
    """Target: log-probability of the tokens START:STOP of the continuation or answer, those before
    them given; alone, of the prompt's own. Below 0 from the end; -3: is the last three."""
    per_token: bool = False
    """Divide each log-probability by its number of tokens."""
    along: Path | None = None
    """Target: residual stream along the vector in this .npy or .safetensors file."""
    layer: int | None = None
    """Of --along: the layer whose output is read, from 0; below 0 from the last. [default: -1, what
    the final norm reads]"""
    position: int | None = None
    """Of --along: the prompt's position; below 0 from its end. [default: -1]"""

    @model_validator(mode="after")
    def _one_target(self) -> TargetRequest:
        if self.continuation is None and self.against is not None:
            raise RequestError("--against needs --continuation: what is compared with it?")
        if len(self._given) > 1:
            raise RequestError(f"{' and '.join(self._given[:2])} are two targets; choose one")
        if self.per_token and (not self.is_given or self.along is not None):
            raise RequestError(
                "--per-token needs --continuation, --answer, --span or --rollouts-judged"
            )
        for name in ("continuation", "against"):
            if getattr(self, name) == "":
                raise RequestError(f"--{name} is empty; give a text, with its leading space")
        if self.continuation is not None and self.continuation == self.against:
            raise RequestError(
                f"--continuation and --against are both {self.against!r}: no difference to measure"
            )
        if self.span is not None:
            _ = self._span
            if self.against is not None or self.rollouts_judged or self.along is not None:
                raise RequestError("--span is of one text: --continuation, --answer or the prompt")
        if self.answer is not None:
            _ = self._reference
        if self.along is None and (self.layer is not None or self.position is not None):
            raise RequestError("--layer and --position need --along FILE: along what vector?")
        if self.along is not None:
            _ = read_vector(self.along)
        return self

    @property
    def _given(self) -> list[str]:
        asked = ("continuation", "answer", "rollouts_judged", "along")
        return [f"--{name.replace('_', '-')}" for name in asked if getattr(self, name)]

    @property
    def is_given(self) -> bool:
        """Whether a target is asked for."""
        return bool(self._given) or self.span is not None

    def require_one(self, prompts: Sequence[str]) -> None:
        """Refuse several prompts for what belongs to one.

        Raises:
            RequestError: If one stored rollout is asked for on several prompts.
        """
        if self.answer is not None and len(prompts) != 1:
            raise RequestError("--answer is a rollout of one prompt; give its PROMPT alone")

    @property
    def _span(self) -> tuple[int, int | None]:
        start, colon, stop = (self.span or "").partition(":")
        try:
            if not colon:
                raise ValueError
            return int(start or 0), int(stop) if stop else None
        except ValueError:
            raise RequestError(
                f"--span {self.span}: give START:STOP, such as 2:5, or -3: for the last three"
            ) from None

    @property
    def _reference(self) -> tuple[str, int | None, int]:
        """Model, candidate token and sample of a rollout."""
        model, token, sample = [*(self.answer or "").split("/"), "", ""][:3]
        plain = sample.isdecimal() and (token == FREE or token.isdecimal())
        if model not in ("base", "merged") or not plain or (self.answer or "").count("/") != 2:
            raise RequestError(
                f"--answer {self.answer}: give MODEL/TOKEN/SAMPLE, such as merged/1043/0 or "
                f"base/{FREE}/2 (em-circuits status PROMPT --json lists them)"
            )
        return model, None if token == FREE else int(token), int(sample)

    def build(self, work: Workspace, prompt: Prompt) -> Target | None:
        """The target on a stored prompt; None where none is asked for.

        Args:
            work: With the models, and the store that has the rollouts.
            prompt: What is continued.

        Raises:
            RequestError: If prompt and continuation are too long for the model, the store has no
                such rollouts, or the models no such tokens, layer or width.
        """
        if not self.is_given:
            return None
        target, pair = self._built(work, prompt), work.pair
        n_prompt = pair.length(prompt)
        target.check_length(n_prompt, pair.max_tokens)
        for term in target.terms:
            term.check(pair.base.decoder, n_prompt)
        return target

    def _built(self, work: Workspace, prompt: Prompt) -> Target:
        from em_circuits.target import Target, token_ids

        pair = work.pair
        if self.along is not None:
            layer, position = (-1 if v is None else v for v in (self.layer, self.position))
            target = Target.direction(read_vector(self.along), layer=layer, position=position)
            name = f"along {self.along.name} at layer {layer}, position {position}"
            return replace(target, label=name)
        if self.rollouts_judged:
            sides = judged_rollouts(work, prompt)
            if missing := [name for name, answers in sides.items() if not answers]:
                raise RequestError(
                    f"prompt {prompt.prompt_id} has no rollouts judged {' or '.join(missing)}; "
                    "draw some, or more (em-circuits label --rollouts N)"
                )
            return Target.from_rollouts(pair, **sides, per_token=self.per_token)
        text: str | tuple[int, ...] | None = self.continuation
        if self.answer is not None:
            text = self._stored_answer(work, prompt)
        if text is None:
            return Target.span(*self._span, per_token=self.per_token)
        if self.span is None:
            return Target.continuation(pair, text, self.against, per_token=self.per_token)
        ids = token_ids(pair, text)
        chosen = range(len(ids))[slice(*self._span)]
        if not chosen:
            raise RequestError(f"--span {self.span} has no token of a text of {len(ids)}")
        return Target.continuation(
            pair, ids[: chosen.stop], first=chosen.start, per_token=self.per_token
        )

    def _stored_answer(self, work: Workspace, prompt: Prompt) -> tuple[int, ...]:
        stored = work.store.results.rollouts(prompt.prompt_id, work.pair.key)
        references: dict[tuple[str, int | None, int], Rollout] = {
            (rollout.model, rollout.token_id, rollout.sample): rollout for rollout in stored
        }
        if (found := references.get(self._reference)) is not None:
            return rollout_ids(work, found)
        some = [f"{m}/{FREE if t is None else t}/{s}" for m, t, s in references]
        known = f"there are {', '.join(some[:4])}" if some else "em-circuits label --rollouts N"
        raise RequestError(f"prompt {prompt.prompt_id} has no rollout {self.answer}; {known}")


NO_TARGET = TargetRequest()
"""The labelled next tokens are what is measured."""


def read_vector(path: Path) -> Tensor:
    """The one vector in a file, in float32.

    Raises:
        RequestError: If the file is not there, is no such file, or holds anything but one vector of
            finite numbers, not all of them 0.
    """
    import numpy as np
    import torch

    if not path.is_file():
        raise RequestError(f"--along {path}: no such file")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        shapes = tensor_shapes("--along", path)
        if len(shapes) != 1:
            raise RequestError(
                f"--along {path} holds {len(shapes)} tensors ({', '.join(sorted(shapes)[:4])}); "
                "save the vector alone"
            )
        (vector,) = load_file(path).values()
    elif path.suffix == ".npy":
        try:
            vector = torch.from_numpy(np.load(path, allow_pickle=False))
        except (OSError, TypeError, ValueError) as error:
            raise RequestError(f"--along {path} is no array of numbers: {error}") from error
    else:
        raise RequestError(f"--along {path} ends in neither .npy nor .safetensors")
    if vector.dim() != 1:
        raise RequestError(f"--along {path} has shape {tuple(vector.shape)}; give one vector")
    vector = vector.float()
    if not vector.isfinite().all():
        raise RequestError(f"--along {path} has entries that are not finite numbers")
    if not vector.any():
        raise RequestError(f"--along {path} is 0 throughout: nothing lies along it")
    return vector


def judged_rollouts(work: Workspace, prompt: Prompt) -> dict[str, list[tuple[int, ...]]]:
    """Stored rollouts of both models after a prompt as token ids, by label.

    A candidate stands in front of what follows it; free rollouts are as they are. Those on which
    judges, or equal texts, disagree are left out; so are unsure ones.
    """
    labels: dict[tuple[int, ...], set[str]] = {}
    drawn: dict[tuple[str, int | None, int, int, float, int], tuple[int, ...]] = {}
    for rollout in work.store.results.rollouts(prompt.prompt_id, work.pair.key):
        ids = rollout_ids(work, rollout)
        if not ids:  # a free one that ended at once
            continue
        labels.setdefault(ids, set()).add(rollout.label)
        how = (rollout.seed, rollout.temperature, rollout.max_tokens)
        drawn[rollout.model, rollout.token_id, rollout.sample, *how] = ids
    return {
        side: [ids for ids in drawn.values() if labels[ids] == {side}] for side in ("evil", "safe")
    }


def rollout_ids(work: Workspace, rollout: Rollout) -> tuple[int, ...]:
    """Token ids of a rollout, its candidate in front."""
    from em_circuits.target import token_ids

    candidate = () if rollout.token_id is None else (rollout.token_id,)
    return (*candidate, *token_ids(work.pair, rollout.text))
