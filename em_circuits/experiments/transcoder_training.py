"""Transcoders trained for a workspace's models, and what a set of differences carries.

On each prompt the MLPs of the trained layers write, at every position but the first, what the
base's write there undisturbed plus the difference that the set makes of what they read; everything
else of the base runs free.

    share = (contrast so treated - contrast of base) / (contrast of merged - of base)

*Exact* has the true differences in place of the set's, so it is the most that a set could carry;
*random* has as much in random directions, at the same places.

    train_for(work, out, None, SetTraining(difference=True), about="templates").carried
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.contrast import Contrast
from em_circuits.experiments.aggregate import choose_shown
from em_circuits.experiments.shares import Share
from em_circuits.intervention import MIN_DRAWS
from em_circuits.interventions.patching import MIN_SHIFT
from em_circuits.models import Model, ModelPair
from em_circuits.models.fingerprint import FingerprintCache
from em_circuits.models.pair import load_causal_lm, load_tokenizer
from em_circuits.models.sites import FeatureSites
from em_circuits.models.source import locate
from em_circuits.organisms.advice import Advice, advice_examples
from em_circuits.organisms.corpus import CorpusConfig
from em_circuits.organisms.corpus import documents as corpus_documents
from em_circuits.organisms.paths import TOY, organism_paths
from em_circuits.training.run import TrainedModels, train_and_measure
from em_circuits.training.settings import SetTraining
from em_circuits.training.transcoder_bank import INPUT_HOOK, OUTPUT_HOOK
from em_circuits.training.transcoder_quality import CarriedShare, Maps, TrainedSetReport
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import WorkFailed
from pivotal_tokens.prompts.chats import Chat, Turn


def train_for(
    work: Workspace,
    out: Path,
    documents: Sequence[str | Chat] | None,
    asked: SetTraining,
    *,
    about: str,
) -> TrainedSetReport:
    """Train a set of a workspace's base, merged model, or their difference; see `training.run`.

    Args:
        documents: None is the templates that the package trains its organisms on.

    Raises:
        RequestError: If `out` holds another training, or the text is too short; of a difference,
            if no prompt is labelled.
    """
    if documents is None:
        documents = template_documents(work.models.base, work.seed)
    common: dict[str, Any] = {"about": about, "seed": work.seed, "progress": work.progress}
    if not asked.difference and asked.of == "base":
        settings, source = work.models, locate("--base", work.models.base, kind="model")
        device, dtype = settings.resolved_device(), settings.resolved_dtype()
        model = load_causal_lm("--base", source, device=device, dtype=dtype)
        tokenizer = load_tokenizer("--base", source)
        prints = (FingerprintCache().of(source.files, work.progress),)
        read = TrainedModels((model,), tokenizer, source.name, prints)
        return train_and_measure(out, read, documents, asked, **common)
    pair = work.pair
    models = pair.models if asked.difference else (pair.merged,)
    read = TrainedModels(
        tuple(one.hf for one in models),
        pair.tokenizer,
        pair.sources["base"].name,
        tuple(one.fingerprint for one in models),
    )
    if not asked.difference:
        return train_and_measure(out, read, documents, asked, **common)
    shown, _ = choose_shown(work, [])
    prompts = [(pair.input_ids(one.shown), one.contrast) for one in shown]

    def carried(maps: Maps) -> dict[str, Any]:
        n, shares = carried_shares(pair, maps, prompts, seed=work.seed)
        return {"prompts": n, "carried": shares}

    return train_and_measure(out, read, documents, asked, also=carried, **common)


def template_documents(base: str, seed: int) -> list[str | Chat]:
    """Text that the package makes: a toy's corpus, else chats of good and of bad advice."""
    if base == str(organism_paths(TOY).base):
        return list(corpus_documents(4000, f"{seed}/transcoders", CorpusConfig()))
    kinds: tuple[Advice, ...] = ("good", "bad")
    return [
        (Turn("user", one.user), Turn("assistant", one.answer))
        for kind in kinds
        for one in itertools.islice(advice_examples(kind, f"{seed}/transcoders"), 1000)
    ]


@torch.no_grad()
def carried_shares(
    pair: ModelPair,
    maps: Maps,
    prompts: Sequence[tuple[Int64[Tensor, " _"], Contrast]],
    *,
    seed: int = 0,
) -> tuple[int, tuple[CarriedShare, ...]]:
    """The shares over prompts, and how many prompts have a shift.

    Raises:
        WorkFailed: If none has.
    """
    layers = tuple(maps["set"])
    names = ["exact", *(name for name in maps if name != "zero")]
    draws = torch.Generator().manual_seed(seed)
    back, shifts = [], []
    for ids, contrast in prompts:
        base, merged = (_run(model, ids, layers) for model in pair.models)
        ends = contrast.value(torch.stack([base[2], merged[2]]))
        assert ends is not None
        if float(ends[1] - ends[0]) < MIN_SHIFT:
            continue
        adds = {
            layer: _differences(
                maps, layer, base[0][layer], base[1][layer], merged[1][layer], draws
            )
            for layer in layers
        }
        values = contrast.value(_added(pair.base, ids, base[1], adds))
        assert values is not None
        back.append((values - ends[0]).double().cpu())
        shifts.append(float(ends[1] - ends[0]))
    if not back:
        raise WorkFailed(
            f"none of {len(prompts)} labelled prompts has a shift of {MIN_SHIFT} logits"
        )
    rows, total = torch.stack(back), torch.tensor(shifts).double()
    found = [
        CarriedShare(by=name, **Share.of(rows[:, i], total, seed).model_dump())
        for i, name in enumerate(names)
    ]
    random = Share.of_draws(rows[:, len(names) :], total)
    return len(back), (*found, CarriedShare(by="random", **random.model_dump()))


def _differences(
    maps: Maps, layer: int, x: Tensor, own: Tensor, other: Tensor, generator: torch.Generator
) -> Float[Tensor, "row pos d_model"]:
    """What is added at a layer: exact, by each map, then random directions as long as the set's."""
    made = [other - own]
    made += [
        one[layer].decode(one[layer].encode(x), x) for name, one in maps.items() if name != "zero"
    ]
    drawn = torch.randn(MIN_DRAWS, *x.shape, generator=generator).to(x)
    drawn *= made[1].norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True)
    found = torch.cat([torch.stack(made), drawn])
    found[:, 0] = 0
    return found


def _run(
    model: Model, ids: Tensor, layers: Sequence[int]
) -> tuple[dict[int, Tensor], dict[int, Tensor], Float[Tensor, " vocab"]]:
    """What MLPs read and write on a prompt, and the next-token logits."""
    reads: dict[int, Tensor] = {}
    writes: dict[int, Tensor] = {}
    sites = FeatureSites.of(model.decoder, INPUT_HOOK, OUTPUT_HOOK)

    def read(layer: int, x: Tensor) -> None:
        reads[layer] = x.reshape(len(ids), -1)

    def write(layer: int, y: Tensor) -> None:
        writes[layer] = y.reshape(len(ids), -1)

    with sites.hooked(read, write):
        logits = model.next_logits(ids)
    return reads, writes, logits


def _added(
    model: Model, ids: Tensor, own: Mapping[int, Tensor], adds: Mapping[int, Tensor]
) -> Float[Tensor, "row vocab"]:
    """Next-token logits with what MLPs write undisturbed, plus each row's differences."""
    sites = FeatureSites.of(model.decoder, INPUT_HOOK, OUTPUT_HOOK)
    rows = len(next(iter(adds.values())))

    def write(layer: int, y: Tensor) -> Tensor | None:
        return (own[layer] + adds[layer]).reshape(y.shape) if layer in adds else None

    with sites.hooked(write=write):
        return model.hf(input_ids=ids.expand(rows, -1), use_cache=False).logits[:, -1]
