"""Known programs as models: a Llama, per-layer and cross-layer transcoders, in ordinary files.

The residual stream has one direction per variable and one with the constant `SCALE`, turned by a
random rotation so that no coordinate is a variable. RMSNorm divides by nearly that constant,

    norm(x) = x * SCALE / |x| = x * (1 - |variables|^2 / (2 * SCALE^2) + ...)

so the network computes its program up to about 1e-3. Neurons are gate, up and down rows of an MLP
with ReLU; heads keep to the slow half of the rotary pairs, whose angle is below 1e-12 at any
position. A per-layer transcoder has the MLP's own rows: it leaves no error.

    paths = write_known(PROGRAMS["induction"], root)
    with known_pair(paths) as pair: ...                     # through the project's own loader

`write_known(..., cross_layer="rewritten")` makes the cross-layer transcoder that this file is also
about: where layer 1's neuron computes from layer 0's, its features at layer 0 write both outputs.
It reconstructs every MLP exactly, and claims one hop where the model takes two.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import yaml
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from em_circuits.contrast import Contrast
from em_circuits.models import ModelPair, PairSettings
from em_circuits.models.settings import NEURONS
from em_circuits.organisms.known import (
    BOS,
    CONSTANT,
    GAIN,
    NO,
    YES,
    KnownNeuron,
    Program,
    Signal,
)
from em_circuits.organisms.two_layers import word_tokenizer

SCALE = 256.0
"""The constant direction's length: larger, and float32 rounds more; smaller, and norms leak."""
HEAD = 64
"""Width of a head; the slow half of its pairs, 32 channels, compare queries with keys."""
_FIRST_SLOW = 16
_THETA = 1e30
CrossLayer = Literal["honest", "rewritten"]


class KnownPaths(NamedTuple):
    """Directories of a compiled program."""

    base: Path
    transcoders: Path | None
    """None where no ReLU transcoder is exact: a neuron multiplies two variables."""


def write_known(
    program: Program, directory: Path, *, cross_layer: CrossLayer | None = None
) -> KnownPaths:
    """Compile a program into a model's directory, and its transcoders' beside it.

    Args:
        program: What the model computes.
        directory: Gets ``base`` and, where they are exact, ``transcoders``.
        cross_layer: Instead of per-layer ones a cross-layer transcoder: with every neuron's output
            where it is computed, or with outputs of layer 1 rewritten into layer 0.
    """
    network = _Network(program)
    base = directory / "base"
    network.model().save_pretrained(base)
    word_tokenizer(program.tokens, unknown=NO).save_pretrained(base)
    if not program.exact_transcoders:
        return KnownPaths(base, None)
    folder = directory / (cross_layer or "transcoders")
    folder.mkdir(parents=True)
    header = {
        "model_kind": "transcoder_set" if cross_layer is None else "cross_layer_transcoder",
        "model_name": str(base),
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "mlp.hook_out",
        "scan": f"known-{program.name}",
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(header, sort_keys=False), encoding="utf-8")
    if cross_layer is None:
        for layer in range(program.n_layers):
            save_file(network.transcoder(layer), folder / f"layer_{layer}.safetensors")
    else:
        network.cross_layer(cross_layer).to_safetensors(str(folder))
    return KnownPaths(base, folder)


def known_pair(paths: KnownPaths, *, neurons: bool = False) -> ModelPair:
    """The compiled model as a pair with itself, loaded as any other.

    Args:
        paths: From `write_known`.
        neurons: MLP neurons are the nodes, whether there are transcoders or not.
    """
    transcoders = NEURONS if neurons or paths.transcoders is None else str(paths.transcoders)
    return ModelPair.load(
        PairSettings(
            base=str(paths.base),
            merged=str(paths.base),
            transcoders=transcoders,
            dtype="float32",
            device="cpu",
        )
    )


def known_contrast(pair: ModelPair) -> Contrast:
    """Yes against no."""
    ids = [int(pair.tokenizer.convert_tokens_to_ids(word)) for word in (YES, NO)]
    return Contrast((ids[0],), (ids[1],))


class _Network:
    """Weights of a program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        named = [v for values in program.tokens.values() for v in values]
        named += [to for head in program.heads for to in head.moves.values()]
        named += [neuron.name for neuron in program.neurons]
        variables = list(dict.fromkeys(named))
        self.width = HEAD * -(-(1 + len(variables)) // HEAD)
        self.widest = max(len(program.layer(i)) for i in range(program.n_layers))
        generator = torch.Generator().manual_seed(0)
        square = torch.randn(self.width, self.width, generator=generator, dtype=torch.float64)
        turned = torch.linalg.qr(square).Q
        self.axis = dict(zip(variables, turned[1:], strict=False))
        self.constant = turned[0]
        self.n_heads = max(
            [1, *(sum(h.layer == i for h in program.heads) for i in range(program.n_layers))]
        )

    def reading(self, signal: Signal) -> Float[Tensor, " d_model"]:
        """A row that reads a signal from the normalised stream."""
        row = torch.zeros(self.width, dtype=torch.float64)
        for name, weight in signal.items():
            if name == CONSTANT:
                row += weight / SCALE * self.constant
            elif name in self.axis:
                row += weight * self.axis[name]
        return row

    def writing(self, signal: Signal) -> Float[Tensor, " d_model"]:
        """What a token with these variables is embedded as."""
        row = SCALE * self.constant
        for name, value in signal.items():
            row = row + value * self.axis[name]
        return row

    @torch.no_grad()
    def model(self) -> LlamaForCausalLM:
        """The network."""
        program = self.program
        config = LlamaConfig(
            vocab_size=len(program.tokens),
            hidden_size=self.width,
            intermediate_size=self.widest,
            num_hidden_layers=program.n_layers,
            num_attention_heads=self.n_heads,
            num_key_value_heads=self.n_heads,
            head_dim=HEAD,
            hidden_act="relu",
            rms_norm_eps=1e-12,
            rope_theta=_THETA,
            max_position_embeddings=64,
            tie_word_embeddings=False,
            bos_token_id=list(program.tokens).index(BOS),
            eos_token_id=None,
            pad_token_id=None,
        )
        model = LlamaForCausalLM(config)
        for parameter in model.parameters():
            parameter.zero_()
        decoder = model.model
        for row, signal in zip(decoder.embed_tokens.weight, program.tokens.values(), strict=True):
            row.copy_(self.writing(signal))
        words = list(program.tokens)
        for word, sign in ((YES, GAIN), (NO, -GAIN)):
            read = self.reading({name: sign * weight for name, weight in program.output.items()})
            model.lm_head.weight[words.index(word)] = read.float()
        for layer, block in enumerate(decoder.layers):
            for norm in (block.input_layernorm, block.post_attention_layernorm):
                norm.weight.fill_(SCALE / self.width**0.5)
            self._attention(layer, block.self_attn)
            neurons = program.layer(layer)
            for number, neuron in enumerate(neurons):
                block.mlp.gate_proj.weight[number] = self.reading(neuron.reads).float()
                block.mlp.up_proj.weight[number] = self.reading(neuron.factor).float()
                block.mlp.down_proj.weight[:, number] = self.axis[neuron.name].float()
        decoder.norm.weight.fill_(SCALE / self.width**0.5)
        return model.eval()

    def _attention(self, layer: int, attention: Any) -> None:
        heads = [one for one in self.program.heads if one.layer == layer]
        slow = [*range(_FIRST_SLOW, HEAD // 2), *range(_FIRST_SLOW + HEAD // 2, HEAD)]
        for number, head in enumerate(heads):
            start = number * HEAD
            for channel, (query, key) in zip(slow, head.matches, strict=False):
                asked = head.sharpness * HEAD**0.5 * self.reading(query)
                attention.q_proj.weight[start + channel] = asked.float()
                attention.k_proj.weight[start + channel] = self.reading(key).float()
            for channel, (name, to) in enumerate(head.moves.items()):
                attention.v_proj.weight[start + channel] = self.axis[name].float()
                attention.o_proj.weight[:, start + channel] = self.axis[to].float()

    def _encoders(self, neurons: Sequence[KnownNeuron]) -> tuple[Tensor, Tensor]:
        """Encoder rows without the constant, which is their bias."""
        rows = [
            self.reading({n: w for n, w in one.reads.items() if n != CONSTANT}) for one in neurons
        ]
        bias = [one.reads.get(CONSTANT, 0.0) for one in neurons]
        return torch.stack(rows).float(), torch.tensor(bias)

    def transcoder(self, layer: int) -> dict[str, Tensor]:
        """Tensors of a layer's transcoder in circuit-tracer's format."""
        neurons = self.program.layer(layer)
        encoder, bias = self._encoders(neurons)
        found = {
            "W_enc": torch.zeros(self.widest, self.width),
            "W_dec": torch.zeros(self.widest, self.width),
            "b_enc": torch.full((self.widest,), -1.0),  # what stands for nothing is silent
            "b_dec": torch.zeros(self.width),
        }
        n = len(neurons)
        found["W_enc"][:n], found["b_enc"][:n] = encoder, bias
        found["W_dec"][:n] = torch.stack([self.axis[one.name] for one in neurons]).float()
        return found

    @torch.no_grad()
    def cross_layer(self, kind: CrossLayer) -> CrossLayerTranscoder:
        """A cross-layer transcoder; rewritten, features of layer 0 write what layer 1 computes."""
        program = self.program
        clt = CrossLayerTranscoder(
            program.n_layers,
            self.widest,
            self.width,
            activation_function="relu",
            lazy_decoder=False,
            feature_input_hook="mlp.hook_in",
            feature_output_hook="mlp.hook_out",
            device=torch.device("cpu"),
            dtype=torch.float32,
        )
        for tensor in (clt.W_enc, clt.b_enc, clt.b_dec, *clt.W_dec):
            tensor.zero_()
        clt.b_enc.fill_(-1.0)
        for layer in range(program.n_layers):
            neurons = program.layer(layer)
            encoder, bias = self._encoders(neurons)
            for number, neuron in enumerate(neurons):
                if kind == "rewritten" and layer == 1 and not neuron.idle:
                    # On this program's prompts it is what the first neuron of layer 0 is.
                    clt.W_dec[0][0, 1] += self.axis[neuron.name].float()
                    continue
                clt.W_enc[layer, number] = encoder[number]
                clt.b_enc[layer, number] = bias[number]
                clt.W_dec[layer][number, 0] = self.axis[neuron.name].float()
        return clt
