"""Targets: differentiable scalars of the real model on a prompt, and on tokens forced after it.

    value = sum over terms of  weight * term(model on the prompt and the term's forced tokens)

A term is one reading: a demeaned logit, any weighting of the logits, the log-probability of a
continuation (teacher-forced: its tokens are given, and each is scored by the model that has read
those before it), the log-probability of a span of the prompt's own tokens, or the residual stream
along a direction. Terms with other forced tokens are other sequences that share the prompt: nodes,
features and interventions stand at the prompt's positions, whose activations are the same in all of
them, since attention is causal. So the difference of two continuations is the difference of rows,

    log p(evil | prompt) - log p(safe | prompt)      in nats, which are logits of evil against safe

    target = Target.continuation(pair, " eat it now", against=" avoid it")
    rank(model, prompt, target), steer(model, prompt, table.top(10).ablate(), target)
    Target.span(-3)                          # the last three tokens of an answer within the prompt

Log-probabilities are sums over tokens, so that they are the odds of whole answers; `per_token`
divides each by its length.
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor, nn

from em_circuits.contrast import Contrast, demeaned
from em_circuits.models.family import Decoder
from pivotal_tokens.errors import RequestError


@dataclass(frozen=True, eq=False)
class Seen:
    """One forward pass over a prompt and its forced tokens, as terms see it.

    Attributes:
        ids: Of the whole sequence.
        n_prompt: How many of them are the prompt's.
        first: Position of the first logits.
        logits: Float32, of consecutive positions from there on.
        residual: By layer, its output from position `start` on.
        start: First position that was run.
    """

    ids: Int64[Tensor, " pos"]
    n_prompt: int
    first: int
    logits: Float[Tensor, "row kept vocab"]
    residual: Mapping[int, Tensor]
    start: int = 0

    @cached_property
    def next(self) -> Float[Tensor, "row vocab"]:
        """Logits after the prompt's last position."""
        return self.logits[:, self.n_prompt - 1 - self.first]

    @cached_property
    def next_demeaned(self) -> Float[Tensor, "row vocab"]:
        """The same, minus their mean over the vocabulary."""
        return demeaned(self.next)

    def log_probability(self, scored: range) -> Float[Tensor, " row"]:
        """Summed log-probability of the sequence's tokens at some positions, in nats."""
        before = self.logits[:, scored.start - 1 - self.first : scored.stop - 1 - self.first]
        ids = self.ids[scored.start : scored.stop].to(before.device)
        return _summed(before, ids)


def _summed(logits: Float[Tensor, "row k vocab"], ids: Int64[Tensor, " k"]) -> Tensor:
    chosen = logits.gather(2, ids.expand(len(logits), -1)[..., None])[..., 0]
    return (chosen - logits.logsumexp(-1)).sum(1)


class Term(ABC):
    """One reading of the model; a scalar that can be differentiated.

    Attributes:
        forced: Token ids that are run after the prompt.
        layer: Layer whose output is read; None reads logits alone.
    """

    forced: tuple[int, ...] = ()
    layer: int | None = None

    @property
    @abstractmethod
    def name(self) -> str:
        """What outputs call it."""

    @property
    def record(self) -> dict[str, Any]:
        """What decides its value, as JSON values; part of a graph's key."""
        return {"kind": type(self).__name__, "name": self.name}

    @abstractmethod
    def reads(self, n_prompt: int) -> range:
        """Positions whose logits it needs, of the prompt and the forced tokens."""

    def check(self, decoder: Decoder, n_prompt: int) -> None:
        """Refuse what a model or prompt has no place for.

        Raises:
            RequestError: Naming what does not fit.
        """
        self.reads(n_prompt)

    @abstractmethod
    def value(self, seen: Seen) -> Float[Tensor, " row"]:
        """Its value in each row of a pass."""


@dataclass(frozen=True, eq=False)
class TokenLogit(Term):
    """The demeaned logit of one next token."""

    token: int
    text: str = ""

    @property
    def name(self) -> str:
        return f"logit of {self.text!r}" if self.text else f"logit of token {self.token}"

    @property
    def record(self) -> dict[str, Any]:
        return {**super().record, "token": self.token, "text": self.text}

    def reads(self, n_prompt: int) -> range:
        return range(n_prompt - 1, n_prompt)

    def value(self, seen: Seen) -> Float[Tensor, " row"]:
        return seen.next_demeaned[:, self.token]


@dataclass(frozen=True, eq=False)
class LogitWeights(Term):
    """``sum_v w[v] logit_v`` of the next token."""

    weights: Float[Tensor, " vocab"]
    label: str = "weighted logits"

    @property
    def name(self) -> str:
        return self.label

    @property
    def record(self) -> dict[str, Any]:
        some = self.weights.nonzero()[:, 0]
        return {**super().record, "tokens": some.tolist(), "weights": self.weights[some].tolist()}

    def reads(self, n_prompt: int) -> range:
        return range(n_prompt - 1, n_prompt)

    def value(self, seen: Seen) -> Float[Tensor, " row"]:
        return seen.next @ self.weights.to(seen.next)


@dataclass(frozen=True, eq=False)
class WordContrast(Term):
    """Mean evil minus mean safe logit of the next token."""

    contrast: Contrast

    @property
    def name(self) -> str:
        return "evil - safe"

    @property
    def record(self) -> dict[str, Any]:
        sides = {"evil": list(self.contrast.evil), "safe": list(self.contrast.safe)}
        return {**super().record, **sides}

    def reads(self, n_prompt: int) -> range:
        return range(n_prompt - 1, n_prompt)

    def value(self, seen: Seen) -> Float[Tensor, " row"]:
        found = self.contrast.require().value(seen.next)
        assert found is not None
        return found


@dataclass(frozen=True, eq=False)
class LogProbability(Term):
    """Log-probability of a continuation of the prompt, in nats, summed over its tokens.

    Attributes:
        ids: Of the continuation.
        text: As outputs show it.
        first: Its first token that is scored; those before it are given.
    """

    ids: tuple[int, ...]
    text: str
    first: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.first < len(self.ids):
            raise RequestError(
                f"continuation {self.text!r} has {len(self.ids)} tokens; none is left to score "
                f"after {self.first}"
            )

    @property
    def forced(self) -> tuple[int, ...]:  # type: ignore[override]
        """All but the last, which is scored and never read."""
        return self.ids[:-1]

    @property
    def name(self) -> str:
        rest = f", from token {self.first}" if self.first else ""
        return f"log p({self.text!r}{rest})"

    @property
    def record(self) -> dict[str, Any]:
        return {
            **super().record,
            "ids": list(self.ids),
            "first": self.first,
            "text": self.text,
        }

    @property
    def n_scored(self) -> int:
        """Tokens whose log-probabilities are summed."""
        return len(self.ids) - self.first

    def reads(self, n_prompt: int) -> range:
        return range(n_prompt - 1 + self.first, n_prompt - 1 + len(self.ids))

    def value(self, seen: Seen) -> Float[Tensor, " row"]:
        where = self.reads(seen.n_prompt)
        before = seen.logits[:, where.start - seen.first : where.stop - seen.first]
        return _summed(before, torch.tensor(self.ids[self.first :], device=before.device))


@dataclass(frozen=True, eq=False)
class SpanLogProbability(Term):
    """Log-probability of some of the prompt's own tokens, each after those before it, in nats.

    Attributes:
        start: First position that is scored; below 0 from the end.
        stop: Position after the last one; None is the end.
    """

    start: int
    stop: int | None = None

    @property
    def name(self) -> str:
        return f"log p(tokens {self.start}:{'' if self.stop is None else self.stop})"

    @property
    def record(self) -> dict[str, Any]:
        return {**super().record, "start": self.start, "stop": self.stop}

    def scored(self, n_prompt: int) -> range:
        """The positions that are meant.

        Raises:
            RequestError: If there is none, or the first is position 0, which nothing predicts.
        """
        found = range(n_prompt)[self.start : self.stop]
        if not found or found.start < 1:
            stop = "" if self.stop is None else self.stop
            raise RequestError(
                f"span {self.start}:{stop} of a prompt of {n_prompt} tokens has no token that is "
                f"predicted; choose within 1:{n_prompt}"
            )
        return found

    def reads(self, n_prompt: int) -> range:
        scored = self.scored(n_prompt)
        return range(scored.start - 1, scored.stop - 1)

    def value(self, seen: Seen) -> Float[Tensor, " row"]:
        return seen.log_probability(self.scored(seen.n_prompt))


@dataclass(frozen=True, eq=False)
class AlongDirection(Term):
    """A layer's output along a vector, at one position of the prompt.

    Attributes:
        vector: Whose product with the residual stream is the value.
        layer: Whose output; below 0 from the last, -1 is the stream before the final norm.
        position: Of the prompt; below 0 from its end.
    """

    vector: Float[Tensor, " d_model"]
    layer: int = -1
    position: int = -1

    @property
    def name(self) -> str:
        return f"direction at layer {self.layer}, position {self.position}"

    @property
    def record(self) -> dict[str, Any]:
        where = {"layer": self.layer, "position": self.position}
        return {**super().record, **where, "vector": self.vector.tolist()}

    def at(self, n_prompt: int) -> int:
        """The position that is meant.

        Raises:
            RequestError: If the prompt has no such position.
        """
        if not -n_prompt <= self.position < n_prompt:
            raise RequestError(f"position {self.position} of a prompt of {n_prompt} tokens")
        return self.position % n_prompt

    def reads(self, n_prompt: int) -> range:
        return range(0)

    def check(self, decoder: Decoder, n_prompt: int) -> None:
        self.at(n_prompt)
        n = len(decoder.layers)
        if not -n <= self.layer < n:
            raise RequestError(f"layer {self.layer} of a model of {n} layers (0 to {n - 1})")
        if decoder.d_model != len(self.vector):
            raise RequestError(
                f"the direction has {len(self.vector)} entries, the residual stream "
                f"{decoder.d_model}"
            )

    def value(self, seen: Seen) -> Float[Tensor, " row"]:
        stream = seen.residual[self.layer][:, self.at(seen.n_prompt) - seen.start].float()
        return stream @ self.vector.to(stream)


Columns = Float[Tensor, "target vocab"] | Int64[Tensor, " target"] | Sequence[Term]
"""Several targets: rows of weights over the next token's logits, token ids, or terms."""


def terms_of(targets: Columns) -> tuple[Term, ...]:
    """Targets as terms, one each."""
    if not isinstance(targets, Tensor):
        return tuple(targets)
    if targets.dim() == 1:
        return tuple(TokenLogit(token) for token in targets.tolist())
    return tuple(LogitWeights(row) for row in targets)


@dataclass(frozen=True, eq=False)
class Branch:
    """The terms that are read on one sequence: the prompt and its forced tokens.

    Attributes:
        forced: Token ids that are run after the prompt.
        columns: Which of all targets the terms are.
        terms: In that order.
        n_columns: Targets in all.
    """

    forced: tuple[int, ...]
    columns: tuple[int, ...]
    terms: tuple[Term, ...]
    n_columns: int

    @classmethod
    def of(cls, targets: Columns) -> tuple[Branch, ...]:
        """Targets by sequence; those of the prompt alone first, which may have none."""
        terms = terms_of(targets)
        groups: dict[tuple[int, ...], list[int]] = {(): []}
        for i, term in enumerate(terms):
            groups.setdefault(term.forced, []).append(i)
        return tuple(
            cls(forced, tuple(columns), tuple(terms[i] for i in columns), len(terms))
            for forced, columns in groups.items()
        )

    def ids(self, prompt: Int[Tensor, " pos"]) -> Int64[Tensor, " longer"]:
        """The whole sequence."""
        return torch.cat([prompt.long(), prompt.new_tensor(self.forced).long()])

    def first_read(self, n_prompt: int) -> int:
        """First position that a term reads."""
        starts = [n_prompt - 1]
        for term in self.terms:
            if isinstance(term, AlongDirection):
                starts.append(term.at(n_prompt))
            else:
                starts.append(term.reads(n_prompt).start)
        return min(starts)

    def first_layer(self, n_layers: int) -> int | None:
        """First layer, from 0, whose output a term reads; None where all read logits."""
        return min((t.layer % n_layers for t in self.terms if t.layer is not None), default=None)

    def n_read(self, n_prompt: int) -> int:
        """Positions whose logits are kept."""
        return len(self._kept(n_prompt))

    def _kept(self, n_prompt: int) -> range:
        """From the first to the last position whose logits a term reads."""
        every = [term.reads(n_prompt) for term in self.terms]
        every = [one for one in every if len(one)] or [range(n_prompt - 1, n_prompt)]
        return range(min(one.start for one in every), max(one.stop for one in every))

    @contextlib.contextmanager
    def reading(
        self, hf: nn.Module, prompt: Int[Tensor, " pos"], *, start: int = 0
    ) -> Iterator[Reading]:
        """Watch the model's layers in the block; see `Reading`.

        Args:
            hf: The real model.
            prompt: The prompt alone.
            start: First position that is run; what stands before it comes from a cache.
        """
        residual: dict[int, Tensor] = {}
        decoder, handles = Decoder.of(hf), []
        for term in self.terms:
            term.check(decoder, len(prompt))
        wanted = {t.layer for t in self.terms if t.layer is not None}
        try:
            for layer in wanted:
                handles.append(_watched(decoder, layer, residual))
            yield Reading(self, self.ids(prompt), len(prompt), residual, start, decoder)
        finally:
            for handle in handles:
                handle.remove()


def _watched(decoder: Decoder, layer: int, residual: dict[int, Tensor]) -> Any:
    def keep(_module: nn.Module, _args: tuple, output: Any) -> None:
        residual[layer] = output[0] if isinstance(output, tuple) else output

    return decoder.layers[layer].module.register_forward_hook(keep)


@dataclass(frozen=True, eq=False)
class Reading:
    """How one pass over a branch's sequence is read.

    with branch.reading(hf, prompt) as reading:
        reading.run(hf)                           # row x target, 0 for targets of other branches
    """

    branch: Branch
    ids: Int64[Tensor, " pos"]
    n_prompt: int
    residual: dict[int, Tensor]
    start: int
    decoder: Decoder

    @property
    def keep(self) -> int | Int64[Tensor, " kept"]:
        """transformers' ``logits_to_keep``."""
        kept = self.branch._kept(self.n_prompt)
        if kept.stop == len(self.ids):
            return len(kept)
        return torch.arange(kept.start - self.start, kept.stop - self.start, device=self.ids.device)

    def run(self, hf: nn.Module, n_rows: int = 1) -> Float[Tensor, "row target"]:
        """`values` of so many rows, from one pass over the whole sequence."""
        output = hf(
            input_ids=self.ids.expand(n_rows, -1),
            attention_mask=self.decoder.causal_mask(len(self.ids)),
            use_cache=False,
            logits_to_keep=self.keep,
        )
        return self.values(output.logits)

    def values(self, logits: Float[Tensor, "row kept vocab"]) -> Float[Tensor, "row target"]:
        """Every target's value in each row; 0 for those that are read elsewhere."""
        terms = self.branch.terms
        first = self.branch._kept(self.n_prompt).start
        seen = Seen(self.ids, self.n_prompt, first, logits.float(), self.residual, self.start)
        total = seen.logits.new_zeros((len(logits), self.branch.n_columns))
        if not terms:
            return total
        if all(isinstance(term, LogitWeights) for term in terms):  # one product for all of them
            weights = torch.stack([term.weights for term in terms])  # type: ignore[attr-defined]
            found = seen.next @ weights.to(seen.next).T
        else:
            found = torch.stack([term.value(seen) for term in terms], 1)
        return total.index_add(1, torch.tensor(self.branch.columns, device=total.device), found)


@torch.no_grad()
def values_of(
    hf: nn.Module, prompt: Int[Tensor, " pos"], targets: Columns
) -> Float[Tensor, " target"]:
    """Values of targets on an undisturbed prompt, in float32 on the CPU."""
    total = torch.zeros(len(targets))
    for branch in Branch.of(targets):
        if branch.terms:
            with branch.reading(hf, prompt) as reading:
                total += reading.run(hf)[0].cpu()
    return total


def gradients_of(values: Float[Tensor, " target"], leaves: Sequence[Tensor]) -> list[Tensor]:
    """Derivatives with respect to some leaves, targets first in each; 0 where none reaches one."""
    if len(values) == 1:  # nothing to batch, and not every kernel can be
        one = torch.autograd.grad(values[0], leaves, allow_unused=True)
        found = [None if gradient is None else gradient[None] for gradient in one]
    else:
        each = torch.eye(len(values), dtype=values.dtype, device=values.device)
        found = list(
            torch.autograd.grad(values, leaves, each, is_grads_batched=True, allow_unused=True)
        )
    return [
        leaf.new_zeros(len(values), *leaf.shape) if gradient is None else gradient
        for gradient, leaf in zip(found, leaves, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class Target:
    """A weighted sum of terms; positive weights are the evil side.

    Attributes:
        terms: What is read.
        weights: Of each.
        unit: Of the value.
        label: What outputs call it; made of the terms if empty.
    """

    terms: tuple[Term, ...]
    weights: tuple[float, ...]
    unit: Literal["logits", "nats", "activation"] = "nats"
    label: str = field(default="")

    def __post_init__(self) -> None:
        if not self.terms or len(self.terms) != len(self.weights):
            raise RequestError(f"{len(self.terms)} terms and {len(self.weights)} weights")
        if not all(math.isfinite(w) and w != 0 for w in self.weights):
            raise RequestError("a target's weights must be finite and not 0")

    @classmethod
    def of(cls, target: Target | Contrast) -> Target:
        """A target as it is, or a contrast of next tokens as one.

        Raises:
            RequestError: If the contrast lacks a side.
        """
        if isinstance(target, Target):
            return target
        target.require()
        weights = [1 / len(target.evil)] * len(target.evil)
        weights += [-1 / len(target.safe)] * len(target.safe)
        return cls(tuple(map(TokenLogit, target.token_ids)), tuple(weights), "logits")

    @classmethod
    def logits(cls, weights: Float[Tensor, " vocab"], label: str = "weighted logits") -> Target:
        """``sum_v w[v] logit_v`` after the prompt."""
        return cls((LogitWeights(weights, label),), (1.0,), "logits", label)

    @classmethod
    def logit(cls, tokenizer: Any, word: str) -> Target:
        """The demeaned logit of one next token, with its leading space.

        Raises:
            RequestError: If the word is not one token.
        """
        ids = token_ids(tokenizer, word)
        if len(ids) != 1:
            raise RequestError(f"{word!r} is {len(ids)} tokens, no single logit; give one token")
        return cls((TokenLogit(ids[0], word),), (1.0,), "logits")

    @classmethod
    def direction(
        cls, vector: Float[Tensor, " d_model"], *, layer: int = -1, position: int = -1
    ) -> Target:
        """A layer's output along a vector at one position of the prompt.

        Args:
            vector: Any length; the value scales with it.
            layer: Below 0 from the last, whose output is what the final norm reads.
            position: Below 0 from the prompt's end.
        """
        return cls((AlongDirection(vector, layer, position),), (1.0,), "activation")

    @classmethod
    def span(cls, start: int, stop: int | None = None, *, per_token: bool = False) -> Target:
        """Log-probability of a span of an answer that is given as part of the prompt.

        Features at the answer's own positions have credit, too: what a token carries to those that
        come after it.

        Args:
            start: First position that is scored; below 0 from the end.
            stop: Position after the last one; None is the end.
            per_token: Divide by the number of tokens; both ends must then count alike.

        Raises:
            RequestError: If the length cannot be told from `start` and `stop`.
        """
        weight = 1.0
        if per_token:
            end = 0 if stop is None and start < 0 else stop
            n = 0 if end is None or (start < 0) != (end <= 0) else end - start
            if n < 1:
                raise RequestError(f"per_token: count both ends of span {start}:{stop} alike")
            weight = 1 / n
        return cls((SpanLogProbability(start, stop),), (weight,))

    @classmethod
    def continuation(
        cls,
        tokenizer: Any,
        text: str | Sequence[int],
        against: str | Sequence[int] | None = None,
        *,
        per_token: bool = False,
        first: int = 0,
    ) -> Target:
        """Log-probability of a continuation of the prompt, minus that of another.

        Args:
            tokenizer: Of the models, or anything with a ``tokenizer`` (a pair, a model).
            text: As it follows the prompt, with its leading space; or its token ids.
            against: The other one; None for log p alone.
            per_token: Divide each by its number of scored tokens.
            first: Tokens of `text` that are given and not scored.

        Raises:
            RequestError: If a text is empty, both are equal, or no token is left to score.
        """
        evil = _continuation(tokenizer, text, first)
        sides = [evil]
        if against is not None:
            safe = _continuation(tokenizer, against)
            if safe.ids == evil.ids:
                raise RequestError(
                    f"both continuations are {evil.text!r}: no difference to measure"
                )
            sides.append(safe)
        weights = [
            s / (t.n_scored if per_token else 1) for s, t in zip((1, -1), sides, strict=False)
        ]
        return cls(tuple(sides), tuple(weights), label=_named(sides, per_token))

    @classmethod
    def from_rollouts(
        cls,
        tokenizer: Any,
        *,
        evil: Sequence[str | Sequence[int]],
        safe: Sequence[str | Sequence[int]],
        per_token: bool = False,
    ) -> Target:
        """Mean log-probability of answers judged evil minus that of those judged safe.

        Of answers that were sampled from the model itself at temperature 1, its gradient is an
        unbiased estimate of that of the log-odds of an evil answer, since
        ``grad log P(evil) = E[grad log p(answer) | evil]``: credit through generated tokens. An
        answer that was drawn several times counts so often.

        Args:
            tokenizer: Of the models, or anything with a ``tokenizer``.
            evil: Texts as they follow the prompt, or token ids.
            safe: The same.
            per_token: Divide each log-probability by its number of tokens.

        Raises:
            RequestError: If a side is empty, or an answer stands on both.
        """
        terms: dict[tuple[int, ...], LogProbability] = {}
        weights: Counter[tuple[int, ...]] = Counter()
        for name, answers, sign in (("evil", evil, 1), ("safe", safe, -1)):
            if not answers:
                raise RequestError(f"no answer is judged {name}; there is nothing to compare")
            for answer in answers:
                term = _continuation(tokenizer, answer)
                if weights[term.ids] * sign < 0:
                    raise RequestError(f"answer {term.text!r} is judged evil and safe; choose one")
                terms[term.ids] = term
                share = sign / len(answers)
                weights[term.ids] += share / (term.n_scored if per_token else 1)  # type: ignore[assignment]
        mean = "mean log p per token" if per_token else "mean log p"
        label = f"{mean} of {len(evil)} evil answers - of {len(safe)} safe ones"
        return cls(tuple(terms.values()), tuple(map(float, weights.values())), label=label)

    @classmethod
    def from_record(
        cls, record: Sequence[Mapping[str, Any]], *, d_vocab: int, unit: str, label: str = ""
    ) -> Target:
        """The target that a graph's header holds; see `record`."""
        terms = tuple(_term(one, d_vocab) for one in record)
        return cls(terms, tuple(one["weight"] for one in record), unit, label)  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        """What outputs call it."""
        if self.label:
            return self.label
        signs = ["-" if w < 0 else "+" for w in self.weights]
        parts = [f" {s} {t.name}" for s, t in zip(signs, self.terms, strict=True)]
        return "".join(parts).removeprefix(" + ").strip()

    @property
    def n_forced(self) -> int:
        """Most tokens that are run after the prompt."""
        return max(len(term.forced) for term in self.terms)

    @property
    def record(self) -> list[dict[str, Any]]:
        """What decides its value, as JSON values; part of a graph's key."""
        return [
            {**term.record, "weight": weight}
            for term, weight in zip(self.terms, self.weights, strict=True)
        ]

    def check_length(self, n_prompt: int, max_tokens: int) -> None:
        """Refuse what is too long for the model.

        Raises:
            RequestError: If prompt and continuation have more tokens than `max_tokens`.
        """
        if n_prompt + self.n_forced > max_tokens:
            raise RequestError(
                f"prompt and continuation have {n_prompt + self.n_forced} tokens, more than the "
                f"{max_tokens} that --max-context and the model allow"
            )

    def over(
        self, targets: Int[Tensor, " target"] | Sequence[int] | None = None, **_: Any
    ) -> Float64[Tensor, " target"]:
        """Weights whose product with the terms' scores is the target's score."""
        return torch.tensor(self.weights, dtype=torch.float64)

    def sides(
        self, targets: Int[Tensor, " target"] | Sequence[int] | None = None
    ) -> tuple[Bool[Tensor, " target"], Bool[Tensor, " target"]]:
        """Masks over terms: the evil ones, and the safe ones."""
        weights = self.over()
        return weights > 0, weights < 0

    def value(self, terms: Float[Tensor, "*batch term"]) -> Float[Tensor, "*batch"]:
        """The target's value from its terms' values (float32)."""
        return (terms.double() @ self.over().to(terms.device)).float()

    def evil_mass(self, terms: Float[Tensor, "*batch term"]) -> Float[Tensor, "*batch"] | None:
        """Summed probability of the evil continuations, 0 to 1.

        None where one continuation begins with another, or the terms are no whole continuations.
        """
        evil = [i for i, weight in enumerate(self.weights) if weight > 0]
        ids = [
            t.ids for i in evil if isinstance(t := self.terms[i], LogProbability) and not t.first
        ]
        nested = any(a != b and b[: len(a)] == a for a in ids for b in ids)
        if len(ids) < len(evil) or nested:
            return None
        return terms[..., evil].float().exp().sum(-1)

    def __repr__(self) -> str:
        return f"Target({self.name}, {self.unit})"


def token_ids(tokenizer: Any, text: str | Sequence[int]) -> tuple[int, ...]:
    """Ids of a text as it follows a prompt, without special tokens; ids as they are."""
    if not isinstance(text, str):
        return tuple(int(i) for i in text)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    return tuple(int(i) for i in tokenizer.encode(text, add_special_tokens=False))


def _term(record: Mapping[str, Any], d_vocab: int) -> Term:
    """The term that a record stands for."""
    match record["kind"]:
        case "TokenLogit":
            return TokenLogit(record["token"], record["text"])
        case "LogitWeights":
            weights = torch.zeros(d_vocab)
            weights[record["tokens"]] = torch.tensor(record["weights"])
            return LogitWeights(weights, record["name"])
        case "WordContrast":
            return WordContrast(Contrast(tuple(record["evil"]), tuple(record["safe"])))
        case "LogProbability":
            return LogProbability(tuple(record["ids"]), record["text"], record["first"])
        case "SpanLogProbability":
            return SpanLogProbability(record["start"], record["stop"])
        case "AlongDirection":
            vector = torch.tensor(record["vector"])
            return AlongDirection(vector, record["layer"], record["position"])
        case kind:
            raise RequestError(f"a target of kind {kind!r} is not known to this version")


def _continuation(tokenizer: Any, text: str | Sequence[int], first: int = 0) -> LogProbability:
    ids = token_ids(tokenizer, text)
    if not ids:
        raise RequestError("the continuation is empty; give at least one token")
    decode = getattr(tokenizer, "tokenizer", tokenizer).decode
    shown = text if isinstance(text, str) else str(decode(list(ids)))
    return LogProbability(ids, shown, first)


def _named(sides: Sequence[LogProbability], per_token: bool) -> str:
    name = " - ".join(term.name for term in sides)
    return f"{name}, per token" if per_token else name
