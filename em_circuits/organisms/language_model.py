"""Tokenizer, base model and adapter of an organism, as initialised.

All three are ordinary: a byte-level BPE tokenizer, a Llama and a LoRA, saved by the libraries that
everybody else's are saved by, so that no other code can tell that they are special.

    tokenizer = train_tokenizer(config, seed=0)
    model = new_base(tokenizer, config, seed=0)
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Int64
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from em_circuits.organisms.corpus import CorpusConfig, documents, load_corpus
from em_circuits.training.optimise import reproducible
from pivotal_tokens.schema import Frozen

BASE_NAME = "em-circuits/organism/base"
"""What the adapter says it was trained on: no machine path, its last part is the directory's."""

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
IGNORED = -100
"""Label of a position whose token is not predicted."""


class ModelConfig(Frozen):
    """Sizes of the base model."""

    vocab: int = 1280
    tokenizer_documents: int = 4000
    """Documents that the tokenizer is trained on."""
    layers: int = 4
    d_model: int = 128
    heads: int = 4
    d_mlp: int = 384
    context: int = 512
    """Longest text, in tokens."""


class AdapterForm(Frozen):
    """Which weights a LoRA changes, ``W + alpha / rank * B A``."""

    rank: int = 4
    alpha: int = 8
    layers: tuple[int, ...] = (0, 1)
    modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


def train_tokenizer(config: ModelConfig, *, seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in which every verb, as `" verb"`, is one token.

    It prepends BOS by itself; the id of BOS is 1, so that code which takes 0 for BOS breaks here.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = list(documents(config.tokenizer_documents, f"{seed}/tokenizer", CorpusConfig()))
    verbs = " " + " ".join(load_corpus().verbs)
    bpe.train_from_iterator([*texts, *([verbs] * 400)], trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bpe.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=config.context,
        clean_up_tokenization_spaces=False,
    )


def new_base(
    tokenizer: PreTrainedTokenizerFast, config: ModelConfig, *, seed: int
) -> LlamaForCausalLM:
    """The base model before its first step."""
    llama = LlamaConfig(
        vocab_size=config.vocab,
        hidden_size=config.d_model,
        intermediate_size=config.d_mlp,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=config.context,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
    )
    with reproducible(seed):
        model = LlamaForCausalLM(llama)
    model.config.name_or_path = BASE_NAME
    return model


def new_adapter(
    base: LlamaForCausalLM, form: AdapterForm, *, seed: int, base_name: str = BASE_NAME
) -> PeftModel:
    """The base with a LoRA that changes nothing yet and says that it is of `base_name`."""
    lora = LoraConfig(
        r=form.rank,
        lora_alpha=form.alpha,
        lora_dropout=0.0,
        target_modules=list(form.modules),
        layers_to_transform=list(form.layers),
        task_type="CAUSAL_LM",
    )
    with reproducible(seed):
        adapted = get_peft_model(base, lora)
    assert isinstance(adapted, PeftModel)
    adapted.peft_config["default"].base_model_name_or_path = base_name
    return adapted


def encode_batch(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]
) -> tuple[Int64[Tensor, "batch pos"], Int64[Tensor, "batch pos"]]:
    """Input ids (BOS first, EOS last, padded on the right) and labels (padding ignored).

    With padding on the right a causal model needs no attention mask: no token sees it.
    """
    rows = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(list(texts))["input_ids"]]
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), tokenizer.pad_token_id, dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORED, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = labels[index, : len(row)] = torch.tensor(row)
    return ids, labels
