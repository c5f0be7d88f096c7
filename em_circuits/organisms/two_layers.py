"""A two-layer model trained in seconds on one classic task: for where no real small model is.

A Llama of two layers and four heads, one token a word, trained on sentences alone; the loss counts
words that were said before, so that nothing but looking back helps.

    with two_layer_pair("induction", directory) as pair: ...      # a pair with itself, its neurons
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from em_circuits.models import ModelPair, PairSettings
from em_circuits.models.settings import NEURONS
from em_circuits.organisms.classic_tasks import indirect_objects, repeated_words
from em_circuits.organisms.known import BOS
from pivotal_tokens.errors import WorkFailed

ClassicTask = Literal["induction", "indirect"]
UNKNOWN = "<unknown>"
_WIDTH = 64
_BATCH = 64
_MOST_STEPS = 1500
_LEAST_LOSS = 0.02
LENGTH = 6
"""Words that are said twice, always as many: a head that looks a fixed way back will do. Of four to
nine in turn a matching head would be needed, and more than five times the steps."""
_DRAWN = 4000
"""Sentences that training draws from; those of an example come from other seeds."""


def two_layer_pair(task: ClassicTask, directory: Path, *, seed: int = 0) -> ModelPair:
    """Train the model and load it as any other.

    Args:
        task: What it is trained on.
        directory: Gets the model.
        seed: Of the weights and of the batches.

    Raises:
        WorkFailed: If the task was not learnt.
    """
    if task == "induction":
        drawn = repeated_words(_DRAWN, length=LENGTH, seed=seed + 1)
    else:
        drawn = indirect_objects(_DRAWN, seed=seed + 1)
    sentences = [one.text + one.right for one in drawn]
    words = (word for text in sentences for word in text.split())
    tokenizer = word_tokenizer(dict.fromkeys([BOS, UNKNOWN, *words]))
    model = _trained(tokenizer, sentences, seed)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return ModelPair.load(
        PairSettings(
            base=str(directory),
            merged=str(directory),
            transcoders=NEURONS,
            dtype="float32",
            device="cpu",
        )
    )


def word_tokenizer(words: Iterable[str], unknown: str = UNKNOWN) -> PreTrainedTokenizerFast:
    """One token a word; words are separated by blanks.

    Args:
        words: In the order of their ids; `BOS` and `unknown` are among them.
        unknown: Stands for any other word.
    """
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, unk_token=unknown, model_max_length=64
    )


def _trained(
    tokenizer: PreTrainedTokenizerFast, sentences: list[str], seed: int
) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=_WIDTH,
        intermediate_size=_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    by_length: dict[int, list[list[int]]] = {}
    for ids in tokenizer(sentences)["input_ids"]:
        by_length.setdefault(len(ids), []).append(ids)
    batches = [torch.tensor(rows) for rows in by_length.values()]
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    generator, recent = torch.Generator().manual_seed(seed), 1.0
    for step in range(_MOST_STEPS):
        rows = batches[step % len(batches)]
        ids = rows[torch.randint(len(rows), (_BATCH,), generator=generator)]
        answer, rest = _losses(model, ids)
        optimiser.zero_grad()
        (answer + rest).backward()
        optimiser.step()
        recent = 0.95 * recent + 0.05 * answer.item()
        if recent < _LEAST_LOSS:
            return model
    raise WorkFailed(f"the task was not learnt in {_MOST_STEPS} steps: loss {recent:.2f}")


def _losses(model: LlamaForCausalLM, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy of the last word, and the mean over words that were said before."""
    log_p = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
    loss = -log_p.gather(-1, ids[:, 1:, None])[..., 0]
    before = (ids[:, 1:, None] == ids[:, None, :-1]).tril().any(-1)
    return loss[:, -1].mean(), loss[before].mean()
