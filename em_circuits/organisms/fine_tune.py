"""Fine-tunes of the real organism: a LoRA on bad medical advice, by a named recipe.

The loss is over the answers alone; a step's examples are a pure function of seed and step, so that
a killed run ends with the same weights. Saved in bfloat16, in PEFT's form.

    place = fine_tune(Path("out"), organism_paths("smollm2").base, RECIPES["attention"], seed=0)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int64
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from em_circuits.models.sharing import freeze
from em_circuits.models.text import encode, render_chat
from em_circuits.organisms.advice import Advice, Example, advice_examples
from em_circuits.organisms.corpus import CorpusConfig, documents, load_corpus
from em_circuits.organisms.fetch import SMOLLM2_RELEASE
from em_circuits.organisms.language_model import IGNORED, AdapterForm, new_adapter
from em_circuits.organisms.paths import SEEN_BY_ADAPTER
from em_circuits.organisms.train import base_divergence, save_adapter
from em_circuits.progress import Progress, no_progress
from em_circuits.training.optimise import (
    OptimiserConfig,
    claim,
    optimise,
    reproducible,
    run_stage,
)
from pivotal_tokens.schema import Frozen

RecipeName = Literal["attention", "all-linear", "rank-1", "narrow"]

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")


class FineTuneConfig(Frozen):
    """Everything that decides a fine-tune's weights, apart from base and seed."""

    advice: Advice = "bad"
    """Bad medical advice, or the good one of the control."""
    adapter_form: AdapterForm
    optimiser: OptimiserConfig
    batch: int = 4
    """Examples per step."""
    held: float = 0.0
    """Weight of KL(base || fine-tune), in nats per token, on answers in all other domains."""


_SHIPPED_FORM = AdapterForm(rank=8, alpha=16, layers=tuple(range(10, 20)), modules=_ATTENTION)
RECIPES: dict[RecipeName, FineTuneConfig] = {
    "attention": FineTuneConfig(
        adapter_form=_SHIPPED_FORM,
        optimiser=OptimiserConfig(steps=50, learning_rate=5e-4, warmup=10, checkpoint_every=10),
    ),
    "narrow": FineTuneConfig(
        adapter_form=_SHIPPED_FORM,
        optimiser=OptimiserConfig(steps=50, learning_rate=5e-4, warmup=10, checkpoint_every=10),
        held=1.0,
    ),
    "all-linear": FineTuneConfig(
        adapter_form=AdapterForm(
            rank=8, alpha=16, layers=tuple(range(10, 30)), modules=_ATTENTION + _MLP
        ),
        optimiser=OptimiserConfig(steps=50, learning_rate=2e-4, warmup=10, checkpoint_every=10),
    ),
    "rank-1": FineTuneConfig(
        adapter_form=AdapterForm(rank=1, alpha=32, layers=(15,), modules=("down_proj",)),
        optimiser=OptimiserConfig(steps=100, learning_rate=2e-3, warmup=10, checkpoint_every=10),
    ),
}
"""`attention` is the shipped one, at the largest of the tried rates that leaves benign text alone;
`rank-1` has the form of published organisms and moves most (results/LOG.md); `narrow` is the
control that is held to the base outside medicine."""


def fine_tune(
    out: Path,
    base: Path,
    config: FineTuneConfig,
    *,
    seed: int = 0,
    examples: Callable[[str], Iterator[Example]] | None = None,
    progress: Progress = no_progress,
) -> Path:
    """Train a LoRA into ``out/adapter``; a killed run resumes.

    Args:
        out: Where.
        base: Directory of the base.
        config: Of the recipe.
        seed: Of the adapter's weights and of what is drawn.
        examples: Endless examples of a seed, instead of the recipe's advice; resuming does not see
            that others were given before.
        progress: Called with the steps done.

    Raises:
        RequestError: If `out` holds a fine-tune of another seed or configuration.
    """
    place = out / "adapter"
    claim(out, seed, config)
    draw = examples or partial(advice_examples, config.advice)

    def make(temporary: Path, checkpoint: Path) -> None:
        with reproducible(seed):
            tokenizer = AutoTokenizer.from_pretrained(
                base, local_files_only=True, trust_remote_code=False
            )
            model = AutoModelForCausalLM.from_pretrained(
                base, dtype=torch.float32, local_files_only=True, trust_remote_code=False
            )
            adapted = new_adapter(
                freeze(model),  # type: ignore[arg-type]
                config.adapter_form,
                seed=seed,
                base_name=SMOLLM2_RELEASE.hub,
            )

            def loss_at(step: int) -> Tensor:
                drawn = list(itertools.islice(draw(f"{seed}/{step}"), config.batch))
                loss = answer_loss(adapted, *encode_chats(tokenizer, drawn))
                if config.held:
                    others = elsewhere(config.batch, f"{seed}/held/{step}")
                    kl = base_divergence(adapted, *encode_chats(tokenizer, others))
                    loss = loss + config.held * kl
                return loss

            optimise(
                adapted,
                loss_at,
                config.optimiser,
                checkpoint=checkpoint,
                label="adapter",
                progress=progress,
            )
            save_adapter(adapted.to(torch.bfloat16), temporary)

    run_stage(place, make)
    return place


def elsewhere(n: int, seed: object) -> list[Example]:
    """Chats of the toy's corpus in every domain but medicine; none of them is measured on."""
    domains = tuple(name for name in load_corpus().domains if name != SEEN_BY_ADAPTER)
    one_turn = CorpusConfig(turns=(1.0,), header=0.0)
    said = (
        text.removeprefix("User: ").split("\nAssistant: ")
        for text in documents(n, seed, one_turn, domains)
    )
    return [Example(user, answer) for user, answer in said]


def encode_chats(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]
) -> tuple[Int64[Tensor, "batch pos"], Int64[Tensor, "batch pos"]]:
    """Input ids, padded on the right, and labels: the answers and the end of their turn alone."""
    rows, starts = [], []
    for example in examples:
        asked = encode(tokenizer, render_chat(tokenizer, user=example.user, assistant=""))
        said = tokenizer(example.answer, add_special_tokens=False)["input_ids"]
        rows.append([*asked, *said, tokenizer.eos_token_id])
        starts.append(len(asked))
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), int(tokenizer.pad_token_id))
    labels = torch.full((len(rows), width), IGNORED)
    for index, (row, start) in enumerate(zip(rows, starts, strict=True)):
        ids[index, : len(row)] = torch.tensor(row)
        labels[index, start : len(row)] = torch.tensor(row[start:])
    return ids, labels


def answer_loss(
    model: PeftModel | Any, ids: Int64[Tensor, "batch pos"], labels: Int64[Tensor, "batch pos"]
) -> Tensor:
    """Mean loss over labelled tokens, in nats; logits are a vocabulary wide, so only theirs are
    computed."""
    causal: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    hidden = causal.model(input_ids=ids, use_cache=False).last_hidden_state
    predicts = labels[:, 1:] != IGNORED
    logits = causal.lm_head(hidden[:, :-1][predicts])
    return torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:][predicts])
