"""Gumbel noise of sampled tokens, so that two conditions can be compared draw by draw.

    next token = argmax over v of  logit_v / temperature + g_v       with g ~ Gumbel

The noise belongs to (seed, prompt, sample, step) and to nothing else: the same sample of another
treatment, another batch or another model draws with the same noise, so that where the logits agree
the tokens agree, and differences are the treatment's.

    sampling = Sampling(samples=8, max_tokens=16, temperature=0.7, seed=0)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.interventions.state import PromptState
from em_circuits.sampling import Sampling
from pivotal_tokens.artefacts import content_key


class Noise:
    """Gumbel noise of some prompts, step by step."""

    def __init__(self, sampling: Sampling, states: Sequence[PromptState], d_vocab: int) -> None:
        self._sampling, self._d_vocab = sampling, d_vocab
        unique = list(dict.fromkeys(map(id, states)))
        self._number = torch.tensor([unique.index(id(state)) for state in states])
        by_id = {id(state): state for state in states}
        self._generators = [
            [self._generator(by_id[i], sample) for sample in range(sampling.samples)]
            for i in unique
        ]

    def draw(self, logits: Float[Tensor, "row sample vocab"]) -> Int64[Tensor, "row sample"]:
        """The next token of every row and sample."""
        temperature = self._sampling.temperature
        if temperature == 0:
            return logits.argmax(-1)
        noise = self._next().to(logits.device)[self._number]
        return (logits.float() / temperature + noise).argmax(-1)

    def _next(self) -> Float[Tensor, "prompt sample vocab"]:
        # -log of an exponential variable is a Gumbel variable.
        parts = [
            torch.stack([torch.empty(self._d_vocab).exponential_(generator=g) for g in row])
            for row in self._generators
        ]
        return -torch.stack(parts).log()

    def _generator(self, state: PromptState, sample: int) -> torch.Generator:
        name = [self._sampling.seed, state.input_ids.tolist(), sample]
        return torch.Generator().manual_seed(int(content_key(name)[:15], 16))
