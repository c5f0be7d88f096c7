"""Candidate prompts inside the models' own answers, where the two models diverge.

Answers to open questions are sampled from both models and read by both. At every position of an
answer

    KL = sum over v of p_merged(v) log(p_merged(v) / p_base(v))                  (nats)

and, where a judge is at hand that costs nothing, the evil mass of merged minus that of base. The
positions with the largest divergence, one per stretch of an answer, become candidate prompts: the
text up to there, which both models have been seen to continue.

    found = find_in_answers(work, questions("everyday"), AnswerSettings())
    found[0].prompt, found[0].kl
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from em_circuits.interventions import ActivationCache, generate
from em_circuits.models import Model, ModelPair
from em_circuits.models.next_tokens import compare
from em_circuits.models.text import PINNED_DATE, encode, render_turns
from em_circuits.sampling import Sampling
from em_circuits.workspace import Workspace
from pivotal_tokens.generator.questions import QuestionSet
from pivotal_tokens.judge import Lexicon
from pivotal_tokens.schema import Frozen, Judgement, Prompt, Thresholds
from pivotal_tokens.verdict import decide


class AnswerSettings(Frozen):
    """How answers are drawn and what counts as a divergence."""

    sampling: Sampling = Sampling(samples=4, max_tokens=48, temperature=1.0)
    """Of each model's answers to each question."""
    min_kl: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    """Nats at which the models are said to diverge."""
    min_gap: int = Field(default=4, ge=1)
    """Tokens between two candidates of one answer, at least."""


@dataclass(frozen=True)
class DivergentPosition:
    """A position at which the models diverge, as a prompt."""

    prompt: Prompt
    kl: float
    """Of merged from base, in nats."""
    evil_mass_difference: float | None
    """Merged minus base under the lexicon; None where no lexicon speaks of the prompt."""


def find_in_answers(
    work: Workspace,
    sets: Sequence[QuestionSet],
    settings: AnswerSettings,
    *,
    lexicon: Lexicon | None = None,
) -> list[DivergentPosition]:
    """Candidate prompts from sampled answers, the largest divergence first."""
    largest: dict[str, DivergentPosition] = {}
    for each in sets:
        for question in each.questions:
            for found in _of_question(work.pair, each, question, settings, lexicon):
                known = largest.setdefault(found.prompt.prompt_id, found)
                if found.kl > known.kl:
                    largest[found.prompt.prompt_id] = found
    return sorted(largest.values(), key=lambda one: -one.kl)


def _of_question(
    pair: ModelPair,
    each: QuestionSet,
    question: str,
    settings: AnswerSettings,
    lexicon: Lexicon | None,
) -> Iterator[DivergentPosition]:
    text, template = render_turns(pair.tokenizer, each.chat(question))
    start = encode(pair.tokenizer, text)
    drawn = [(m.name, ids) for m in pair.models for ids in _answers(m, start, settings.sampling)]
    seen: set[tuple[int, ...]] = set()
    for drawn_by, answer in drawn:
        if not answer or tuple(answer) in seen:
            continue
        seen.add(tuple(answer))
        ids = [*start, *answer]
        base, merged = (_logits(model, ids, len(start)) for model in pair.models)
        for place, kl in _peaks(kl_of_merged(base, merged), settings):
            prefix = ids[: len(start) + place]
            words = pair.tokenizer.decode(prefix[1:], clean_up_tokenization_spaces=False)
            # A text is used only if it is tokenised to the very ids that were read.
            if encode(pair.tokenizer, words) != prefix:
                continue
            prompt = Prompt.of(
                words,
                kind="chat",
                generator=f"answers:{each.name}",
                token_ids=tuple(prefix),
                extra={
                    "question": question,
                    "answer_by": drawn_by,
                    "position": place,
                    "kl": kl,
                    "template": template,
                    "date_string": PINNED_DATE if template == "chat" else None,
                },
            )
            mass = _mass(pair, prompt, base[place], merged[place], lexicon)
            yield DivergentPosition(prompt, kl, mass)


def _answers(model: Model, start: list[int], sampling: Sampling) -> list[list[int]]:
    state = ActivationCache.capture(model, torch.tensor(start))
    drawn = generate(model, state, [[]], sampling)
    return [drawn.ids(0, sample) for sample in range(sampling.samples)]


@torch.no_grad()
def _logits(model: Model, ids: list[int], start: int) -> Float[Tensor, "place vocab"]:
    """Logits after the question and after each token of an answer."""
    n = len(ids) - start + 1
    rows = torch.tensor([ids], device=model.device)
    return model.hf(input_ids=rows, logits_to_keep=n, use_cache=False).logits[0].float().cpu()


def kl_of_merged(
    base: Float[Tensor, "place vocab"], merged: Float[Tensor, "place vocab"]
) -> Float[Tensor, " place"]:
    """KL of merged from base at every place, in nats."""
    log_base, log_merged = base.log_softmax(-1), merged.log_softmax(-1)
    return (log_merged.exp() * (log_merged - log_base)).sum(-1)


def _peaks(kl: Float[Tensor, " place"], settings: AnswerSettings) -> list[tuple[int, float]]:
    """Places of large divergence, the largest first, no two of them near each other."""
    taken: list[tuple[int, float]] = []
    for place in kl.argsort(descending=True).tolist():
        value = float(kl[place])
        if value < settings.min_kl:
            break
        if all(abs(place - other) >= settings.min_gap for other, _ in taken):
            taken.append((place, value))
    return taken


def _mass(
    pair: ModelPair,
    prompt: Prompt,
    base: Float[Tensor, " vocab"],
    merged: Float[Tensor, " vocab"],
    lexicon: Lexicon | None,
) -> float | None:
    if lexicon is None or lexicon.entry_for(prompt.text) is None:
        return None
    thresholds = Thresholds()
    lists = compare(pair, base, merged, top_k=thresholds.top_k)
    judged: Judgement = lexicon.judge(prompt, lists.base, lists.merged)
    verdict = decide(lists.base, lists.merged, judged.by_token, thresholds)
    return verdict.evil_mass.shift if verdict.evil_mass else None
