"""Continuations of a prompt, generated while features are changed.

All treatments and samples run as one batch: one pass over the prompt for every treatment, its
cache of keys and values copied to the samples, then token by token. Interventions at a class of
positions that includes generated tokens act on every token as it is read back; the others act on
the prompt and are felt through the cache. What a regime freezes, it freezes on the prompt (the
first token); generated tokens run free, as in circuit-tracer's `feature_intervention_generate`.

    drawn = generate(model, state, [[], [intervention]], Sampling(samples=8))
    drawn.texts(model)[1][0]                            # row 1, sample 0

Tokens are drawn so that rows can be compared draw by draw:

    next token = argmax over v of  logit_v / temperature + g_v       with g ~ Gumbel

The noise belongs to (seed, prompt, sample, step) and to nothing else: the same sample of another
row, another batch or another model draws with the same noise, so that where the logits agree the
tokens agree, and differences are the treatment's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.activation_cache import ActivationCache, BatchedCache
from em_circuits.intervention import Regime
from em_circuits.interventions.edits import EditBatch, Row
from em_circuits.interventions.hooks import Hooks
from em_circuits.interventions.run import Batches, default_batch, edits_of, prepared, states_of
from em_circuits.interventions.source_model import SourceModel, source_model_for
from em_circuits.models import Model
from em_circuits.models.memory import BatchSize
from em_circuits.sampling import Sampling
from pivotal_tokens.artefacts import content_key

END = -1
"""Stands after a continuation that has ended."""


@dataclass(frozen=True)
class Continuations:
    """What was generated, on the CPU."""

    tokens: Int64[Tensor, "row sample step"]
    """`END` after the model's end-of-sequence token, which is itself left out."""
    logits: Float[Tensor, "row sample step vocab"] | None
    """Raw, from which each token was drawn; kept where asked."""

    def ids(self, row: int, sample: int) -> list[int]:
        """Token ids of one continuation."""
        return [t for t in self.tokens[row, sample].tolist() if t != END]

    def texts(self, model: Model) -> list[list[str]]:
        """Text of each row's samples."""
        n_rows, n_samples, _ = self.tokens.shape
        return [
            [
                model.tokenizer.decode(self.ids(r, s), clean_up_tokenization_spaces=False)
                for s in range(n_samples)
            ]
            for r in range(n_rows)
        ]


@torch.no_grad()
def generate(
    model: Model,
    state: ActivationCache | Sequence[ActivationCache],
    rows: Sequence[Row],
    sampling: Sampling,
    regime: Regime = Regime.FREE,
    *,
    batch_size: int | None = None,
    source: Model | None = None,
    keep_logits: bool = False,
) -> Continuations:
    """Continuations under each row's treatment.

    Args:
        model: The real model is run and left as it was.
        state: The prompt, captured on this model, or the prompt of each row.
        rows: Interventions or treatment of each row; an empty one is the undisturbed model.
        sampling: How many, how long, how random.
        regime: What is frozen while the prompt is read.
        batch_size: Continuations per forward pass; None fits them into memory.
        source: Where rows that replace tensors take them from.
        keep_logits: Keep the logits that every token was drawn from.

    Raises:
        RequestError: If an intervention has no place in the model or the prompt.
    """
    states = states_of(state, len(rows))
    checked = prepared(model, states, rows)
    longest = max(states, key=lambda s: s.n_pos)
    size = batch_size or default_batch(model, longest, regime)
    batches = BatchSize(max(1, size // sampling.samples))
    order = _order(model, states, sampling)

    def run(some: Sequence[int]) -> Continuations:
        own, given = [states[i] for i in some], [checked[i] for i in some]
        return _Run(model, own, given, sampling, regime).run(source, keep_logits=keep_logits)

    parts = [
        part
        for group in order
        for _, part in batches.over(len(group), lambda a, b, group=group: run(group[a:b]))  # type: ignore[misc]
    ]
    back = torch.tensor([i for group in order for i in group]).argsort()
    logits = None
    if keep_logits:
        logits = torch.cat([p.logits for p in parts if p.logits is not None])[back]
    return Continuations(torch.cat([p.tokens for p in parts])[back], logits)


def _order(model: Model, states: Sequence[ActivationCache], sampling: Sampling) -> list[list[int]]:
    """Rows that may run together.

    A shorter prompt is padded behind its end, in front of what is generated; a sliding window
    would count the padding, so where one is too short for everything lengths stay apart.
    """
    longest = max(state.n_pos for state in states)
    if not model.decoder.windowed_within(longest + sampling.max_tokens):
        return [list(range(len(states)))]
    groups: dict[int, list[int]] = {}
    for i, state in enumerate(states):
        groups.setdefault(state.n_pos, []).append(i)
    return list(groups.values())


class _Run:
    """One batch of continuations."""

    def __init__(
        self,
        model: Model,
        states: Sequence[ActivationCache],
        rows: Sequence[Row],
        sampling: Sampling,
        regime: Regime,
    ) -> None:
        self._model, self._states, self._rows = model, states, rows
        self._sampling = sampling
        self._edits = edits_of(states, rows)
        self._each = [row for row in rows for _ in range(sampling.samples)]
        self._step_edits = EditBatch.of_step(self._each)
        self._batches = Batches(model, [self._edits, self._step_edits], regime)

    def run(self, other: Model | None, *, keep_logits: bool) -> Continuations:
        source = source_model_for(self._model, other, self._rows, self._model.sites.n_layers)
        first, cache = self._prompt(source)
        n_samples, d_vocab = self._sampling.samples, first.shape[-1]
        logits = first[:, None].expand(-1, n_samples, -1)
        cache.batch_repeat_interleave(n_samples)
        if source is not None:
            source.expand(n_samples, self._each)
        noise = Noise(self._sampling, self._states, d_vocab)
        stop = _end_tokens(self._model).to(self._model.device)
        ended = torch.zeros(logits.shape[:2], dtype=torch.bool, device=self._model.device)
        tokens, steps = [], []
        for step in range(self._sampling.max_tokens):
            drawn = noise.draw(logits)
            if self._sampling.stop_at_end:
                ended = ended | torch.isin(drawn, stop)
            tokens.append(torch.where(ended, END, drawn).cpu())
            if keep_logits:
                steps.append(logits.cpu())
            if bool(ended.all()) or step + 1 == self._sampling.max_tokens:
                break
            logits = self._step(drawn.reshape(-1, 1), step, cache, source).view(
                len(self._rows), n_samples, d_vocab
            )
        length = self._sampling.max_tokens - len(tokens)
        tokens += [torch.full_like(tokens[0], END)] * length
        steps += [torch.zeros_like(steps[0])] * length if steps else []
        return Continuations(torch.stack(tokens, 2), torch.stack(steps, 2) if steps else None)

    def _prompt(self, source: SourceModel | None) -> tuple[Float[Tensor, "row vocab"], Any]:
        stacked = BatchedCache.of(self._states)
        batch = self._batches.batch(
            stacked, self._edits, replaces=source is not None, every_layer=True
        )
        if source is not None:
            batch.hooks.patched = source.run(input_ids=batch.input_ids, use_cache=True)
        return batch.run(use_cache=True)

    def _step(
        self, drawn: Int64[Tensor, "row 1"], step: int, cache: Any, source: SourceModel | None
    ) -> Float[Tensor, "row vocab"]:
        """Read the tokens that were drawn; logits of the next ones."""
        model = self._model
        hooks = Hooks(model, self._step_edits, self._batches.rows)
        given = {"input_ids": drawn, **self._places(step)}
        if source is not None:
            hooks.patched = source.run(use_cache=True, **given)
        with hooks.installed():
            output = model.hf(**given, use_cache=True, **{model.decoder.cache_name: cache})
        return output.logits[:, -1].float()

    def _places(self, step: int) -> dict[str, Tensor]:
        """Positions and mask, where prompts of different lengths were padded."""
        lengths = torch.tensor([s.n_pos for s in self._states])
        longest = int(lengths.max())
        if bool((lengths == longest).all()):
            return {}
        each = lengths.repeat_interleave(self._sampling.samples)[:, None]
        columns = torch.arange(longest + step + 1)[None]
        mask = ((columns < each) | (columns >= longest)).long()
        device = self._model.device
        return {"attention_mask": mask.to(device), "position_ids": (each + step).to(device)}


def _end_tokens(model: Model) -> Int64[Tensor, " token"]:
    """Ids of the tokens that end a text, as the model's generation settings say."""
    settings: Any = getattr(model.hf, "generation_config", None)
    ids = getattr(settings, "eos_token_id", None)
    ids = [] if ids is None else ids if isinstance(ids, list) else [ids]
    return torch.tensor(ids, dtype=torch.int64)


class Noise:
    """Gumbel noise of some prompts, step by step."""

    def __init__(self, sampling: Sampling, states: Sequence[ActivationCache], d_vocab: int) -> None:
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

    def _generator(self, state: ActivationCache, sample: int) -> torch.Generator:
        name = [self._sampling.seed, state.input_ids.tolist(), sample]
        return torch.Generator().manual_seed(int(content_key(name)[:15], 16))
