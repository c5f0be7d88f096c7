"""Target requests: a continuation, the difference of two, or judged rollouts, as somebody types it.

    request = TargetRequest(continuation=" eat it now", against=" avoid it")
    target = request.build(work, prompt)               # None where nothing is asked for

Checked before anything is loaded; it becomes a `Target` once there is a tokenizer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import ConfigDict, model_validator

from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen, Prompt

if TYPE_CHECKING:
    from em_circuits.target import Target
    from em_circuits.workspace import Workspace


class TargetRequest(Frozen):
    """What is measured in place of the contrast of labelled next tokens.

    Raises:
        RequestError: If a text is empty, both are equal, or two targets are asked for.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)

    continuation: str | None = None
    """Target: log-probability of this text after the prompt (mind the leading space), in place of
    labelled next tokens."""
    against: str | None = None
    """Minus that of this text."""
    per_token: bool = False
    """Divide each log-probability by its number of tokens."""
    rollouts_judged: bool = False
    """Target: mean log-probability of the stored rollouts (of either model) that were judged evil
    minus that of the safe ones (label --rollouts)."""

    @model_validator(mode="after")
    def _one_target(self) -> TargetRequest:
        if self.continuation is None and self.against is not None:
            raise RequestError("--against needs --continuation: what is compared with it?")
        if self.continuation is not None and self.rollouts_judged:
            raise RequestError("--continuation and --rollouts-judged are two targets; choose one")
        if self.per_token and not self.is_given:
            raise RequestError("--per-token needs --continuation or --rollouts-judged")
        for name in ("continuation", "against"):
            if getattr(self, name) == "":
                raise RequestError(f"--{name} is empty; give a text, with its leading space")
        if self.continuation is not None and self.continuation == self.against:
            raise RequestError(
                f"--continuation and --against are both {self.against!r}: no difference to measure"
            )
        return self

    @property
    def is_given(self) -> bool:
        """Whether a target is asked for."""
        return self.continuation is not None or self.rollouts_judged

    def build(self, work: Workspace, prompt: Prompt) -> Target | None:
        """The target on a stored prompt; None where none is asked for.

        Args:
            work: With the models, and the store that has the rollouts.
            prompt: What is continued.

        Raises:
            RequestError: If prompt and continuation are too long for the model, or the store has
                no rollouts of one side.
        """
        from em_circuits.target import Target

        if not self.is_given:
            return None
        pair = work.pair
        if self.continuation is not None:
            target = Target.continuation(
                pair, self.continuation, self.against, per_token=self.per_token
            )
        else:
            sides = judged_rollouts(work, prompt)
            if missing := [name for name, answers in sides.items() if not answers]:
                raise RequestError(
                    f"prompt {prompt.prompt_id} has no rollouts judged {' or '.join(missing)}; "
                    "draw some, or more (em-circuits label --rollouts N)"
                )
            target = Target.from_rollouts(pair, **sides, per_token=self.per_token)
        target.check_length(pair.length(prompt), pair.max_tokens)
        return target


def judged_rollouts(work: Workspace, prompt: Prompt) -> dict[str, list[tuple[int, ...]]]:
    """Stored rollouts of both models after a prompt as token ids, by label.

    A candidate stands in front of what follows it; free rollouts are as they are. Those on which
    judges, or equal texts, disagree are left out; so are unsure ones.
    """
    from em_circuits.target import token_ids

    labels: dict[tuple[int, ...], set[str]] = {}
    drawn: dict[tuple[str, int | None, int, int, float, int], tuple[int, ...]] = {}
    for rollout in work.store.results.rollouts(prompt.prompt_id, work.pair.key):
        candidate = () if rollout.token_id is None else (rollout.token_id,)
        ids = (*candidate, *token_ids(work.pair, rollout.text))
        if not ids:  # a free one that ended at once
            continue
        labels.setdefault(ids, set()).add(rollout.label)
        how = (rollout.seed, rollout.temperature, rollout.max_tokens)
        drawn[rollout.model, rollout.token_id, rollout.sample, *how] = ids
    return {
        side: [ids for ids in drawn.values() if labels[ids] == {side}] for side in ("evil", "safe")
    }
