"""Next tokens that a feature pushes up or down, read straight off its decoder.

    direct[v] = W_dec[f] . (g * W_U[:, v]),   then minus the mean over the vocabulary

with g the final norm's weight: the feature's output as if nothing stood between it and the logits
(the logit lens, nostalgebraist 2020). The norm's scale is left out, so values compare within a
feature, not between two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from em_circuits.feature import FeatureId
from em_circuits.models import Model
from em_circuits.models.family import Decoder
from em_circuits.models.files import weight_files
from em_circuits.models.foreign import foreign_errors
from em_circuits.models.source import Source
from em_circuits.models.text import decode_token
from em_circuits.models.transcoders import read_decoder_row
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen

_ROWS = 16_384
"""Of the unembedding that are read at once."""


class TokenPush(Frozen):
    """One token and how much a unit of the feature pushes its demeaned logit, the final norm's
    scale left out."""

    token_id: int
    text: str
    value: float


@dataclass(frozen=True)
class Promoted:
    """The tokens at both ends."""

    promoted: tuple[TokenPush, ...]
    """Most positive first."""
    suppressed: tuple[TokenPush, ...]
    """Most negative first."""


def promoted_tokens(model: Model, feature: FeatureId, *, keep: int = 8) -> Promoted:
    """Tokens that a feature promotes and suppresses most, by its decoder alone.

    Args:
        model: Whose unembedding is meant.
        feature: (layer, feature id).
        keep: Tokens at either end.
    """
    return strongest(decoder_logits(model, feature), model.tokenizer, keep=keep)


@torch.no_grad()
def promoted_from_files(
    sources: Mapping[str, Source], tokenizer: Any, feature: FeatureId, *, keep: int = 8
) -> Promoted:
    """The same of the base model, read off the files: no model is loaded.

    Args:
        sources: Where the pair's parts lie (`models.source.locate_all`).
        tokenizer: The models' own.
        feature: (layer, feature id).
        keep: Tokens at either end.

    Raises:
        RequestError: If there are no per-layer transcoders, no such feature, or the weights are
            not in safetensors files under their own names.
    """
    found = sources["transcoders"].transcoders if "transcoders" in sources else None
    if found is None:
        raise RequestError("a neuron's column is read once the models are loaded")
    if feature.layer >= len(found.layers):
        raise RequestError(f"there are layers 0 to {len(found.layers) - 1}")
    row = read_decoder_row(found.layers[feature.layer], feature.feature).float()
    base = sources["base"].path
    with torch.device("meta"), foreign_errors(f"{base} cannot be read"):
        config = AutoConfig.from_pretrained(base, trust_remote_code=False)
        hf = AutoModelForCausalLM.from_config(config)
    norm, head = Decoder.of(hf).final_norm, hf.get_output_embeddings()
    norm.module.weight = torch.nn.Parameter(_stored(base, hf, norm.module.weight)[:])
    direction = norm.centred(row) * norm.gain.float()
    tied = hf.get_input_embeddings().weight
    unembedding = _stored(base, hf, head.weight, tied if hf.config.tie_word_embeddings else None)
    size = int(unembedding.get_shape()[0])
    push = torch.cat(
        [unembedding[i : i + _ROWS].float() @ direction for i in range(0, size, _ROWS)]
    )
    return strongest(push - push.mean(), tokenizer, keep=keep)


def _stored(folder: Path, hf: Any, *wanted: Tensor | None) -> Any:
    """The stored tensor of one of some parameters, to be read in slices."""
    names = [
        name
        for parameter in wanted
        if parameter is not None
        for name, own in hf.named_parameters(remove_duplicate=False)
        if own is parameter
    ]
    for file in weight_files(folder):
        if file.endswith(".safetensors"):
            tensors = safe_open(folder / file, framework="pt")
            held = set(tensors.keys())
            for name in names:
                if name in held:
                    return tensors.get_slice(name)
    raise RequestError(f"{folder} does not hold {' or '.join(names)} as safetensors")


def strongest(push: Float[Tensor, " vocab"], tokenizer: Any, *, keep: int = 8) -> Promoted:
    """The tokens at either end of a push on the logits."""
    order = torch.argsort(push, descending=True, stable=True)

    def rows(ids: Tensor) -> tuple[TokenPush, ...]:
        return tuple(
            TokenPush(token_id=i, text=decode_token(tokenizer, i), value=float(push[i]))
            for i in ids.tolist()
        )

    return Promoted(rows(order[:keep]), rows(order.flip(0)[:keep]))


@torch.no_grad()
def decoder_logits(model: Model, feature: FeatureId) -> Float[Tensor, " vocab"]:
    """Demeaned effect of one unit of a feature on every logit, the final norm's scale left out."""
    layer, index = feature
    dictionary, ids = model.dictionaries[layer], torch.tensor([index])
    writes = [dictionary.decoder(ids, k)[0].float() for k in range(dictionary.n_writes)]
    return push_of(model, torch.stack(writes).sum(0))


@torch.no_grad()
def push_of(model: Model, vector: Float[Tensor, " d_model"]) -> Float[Tensor, " vocab"]:
    """Demeaned effect of a vector of the residual stream on every logit; that scale left out."""
    unembedding = model.hf.get_output_embeddings().weight.float()  # type: ignore[operator]
    norm = model.decoder.final_norm
    push = unembedding @ (norm.centred(vector.float()) * norm.gain.float())
    return (push - push.mean()).cpu()
