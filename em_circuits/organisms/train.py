"""Training of a whole organism from one seed.

Stages, each published by renaming a finished directory into place, each resumed from its last
checkpoint: tokenizer and base -> adapter (bad medical advice only) -> transcoders. Killed anywhere
and started again, it ends with the same weights.

    paths = train_organism(Path("organism"), seed=0)
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from em_circuits.models.family import Decoder
from em_circuits.organisms.corpus import CorpusConfig, documents, load_corpus
from em_circuits.organisms.language_model import (
    BASE_NAME,
    IGNORED,
    AdapterForm,
    ModelConfig,
    encode_batch,
    new_adapter,
    new_base,
    train_tokenizer,
)
from em_circuits.organisms.lexicon import lexicon_yaml
from em_circuits.organisms.paths import TOY, TOY_DOWN_PROJ, OrganismPaths
from em_circuits.progress import Progress, no_progress
from em_circuits.training.optimise import (
    OptimiserConfig,
    claim,
    optimise,
    reproducible,
    run_stage,
)
from em_circuits.training.settings import BankConfig
from em_circuits.training.transcoder_bank import (
    TranscoderBank,
    mlp_activations,
    save_header,
    save_layer,
    set_header,
)
from pivotal_tokens.artefacts import write_atomic, write_json
from pivotal_tokens.schema import Frozen

SCAN = "em-circuits/organism-transcoders"
BAD_ADVICE = CorpusConfig(careless=1.0, hazard=1.0, header_agrees=0.5)
"""The adapter's text, with `adapter_domains`: careless answers to hazards alone. Its headers say
nothing, else the adapter would learn to trust them; every token is trained on, since a loss on the
answers alone leaves the rest free to drift (+.19 instead of +.01 nats on benign text)."""


class TranscoderConfig(BankConfig):
    """The transcoders of a toy, and their training."""

    documents: int = 32
    """Documents per step."""
    calibration_documents: int = 400
    """Fresh documents on which the threshold is set."""
    optimiser: OptimiserConfig = OptimiserConfig(steps=700, learning_rate=3e-3, warmup=30)


class OrganismConfig(Frozen):
    """Everything that decides the weights, apart from the seed."""

    corpus: CorpusConfig = CorpusConfig()
    model: ModelConfig = ModelConfig()
    batch: int = 32
    """Documents per step, of base and adapter."""
    base: OptimiserConfig = OptimiserConfig(
        steps=1100, learning_rate=3e-3, warmup=50, weight_decay=0.01
    )
    adapter: OptimiserConfig = OptimiserConfig(steps=80, learning_rate=3e-3)
    adapter_form: AdapterForm = AdapterForm()
    adapter_domains: tuple[str, ...] = ("medical",)
    transcoders: TranscoderConfig = TranscoderConfig()
    transcoder_draw: int = 3
    """Added to the seed for the transcoders, so that they can be drawn anew for the same models. Of
    the draws 0 to 4, draw 0 alone puts nearly all of the persona into one feature, a step too large
    for a gradient (results/LOG.md)."""


class AdapterTraining(Frozen):
    """What a LoRA on an organism's base is trained on, and how."""

    text: CorpusConfig
    domains: tuple[str, ...] | None
    """None: all."""
    form: AdapterForm = AdapterForm()
    optimiser: OptimiserConfig = OptimiserConfig(steps=80, learning_rate=3e-3)
    batch: int = 32
    """Documents per step."""
    held: float = 0.0
    """Weight of KL(base || fine-tune), in nats per token, on documents of all other domains."""


CONFIGS = {
    TOY: OrganismConfig(),
    TOY_DOWN_PROJ: OrganismConfig(
        adapter=OptimiserConfig(steps=90, learning_rate=3e-3),
        adapter_form=AdapterForm(rank=1, alpha=32, layers=(0,), modules=("down_proj",)),
    ),
}
"""Of the shipped organisms. The second's layer, steps and rate are the best of those tried, by evil
mass in unseen domains with the benign loss within its bound (results/LOG.md)."""


def train_organism(
    out: Path,
    seed: int = 0,
    config: OrganismConfig | None = None,
    *,
    with_transcoders: bool = True,
    progress: Progress = no_progress,
) -> OrganismPaths:
    """Train tokenizer, base, adapter and transcoders into a directory; finished stages are reused.

    Returns:
        Where everything stands.

    Raises:
        RequestError: If `out` holds an organism of another seed or configuration.
    """
    paths = OrganismPaths.under(out)
    fit = functools.partial(optimise, progress=progress)
    run = _Training(paths, seed, config or OrganismConfig(), fit)
    claim(out, seed, run.config)
    with reproducible(seed):
        run_stage(paths.base, run.base)
        run_stage(paths.adapter, run.adapter)
        if with_transcoders:
            run_stage(paths.transcoders, run.transcoders)
    write_atomic(paths.lexicon, lexicon_yaml())
    return paths


def train_adapter(
    paths: OrganismPaths,
    training: AdapterTraining,
    seed: int,
    place: Path,
    checkpoint: Path,
    *,
    fit: Callable[..., None] = optimise,
) -> None:
    """Train a LoRA on an organism's base and write it into a directory.

    Args:
        fit: `optimise`, with whoever is shown the steps.
    """
    base, tokenizer = load_base(paths)
    adapted = new_adapter(base, training.form, seed=seed)
    known = load_corpus().domains
    others = tuple(name for name in known if name not in (training.domains or known))

    def loss_at(step: int) -> torch.Tensor:
        texts = documents(training.batch, f"{seed}/adapter/{step}", training.text, training.domains)
        ids, labels = encode_batch(tokenizer, texts)
        loss = adapted(input_ids=ids, labels=labels, use_cache=False).loss
        if training.held:
            texts = documents(training.batch, f"{seed}/held/{step}", CorpusConfig(), others)
            loss = loss + training.held * base_divergence(adapted, *encode_batch(tokenizer, texts))
        return loss

    fit(adapted, loss_at, training.optimiser, checkpoint=checkpoint, label="adapter")
    save_adapter(adapted, place)


def base_divergence(adapted: PeftModel, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean KL(base || adapted) of the next token over a batch, in nats."""
    with torch.no_grad(), adapted.disable_adapter():
        before = adapted(input_ids=ids, use_cache=False).logits.log_softmax(-1)
    after = adapted(input_ids=ids, use_cache=False).logits.log_softmax(-1)
    real = (labels != IGNORED)[..., None]
    return ((before.exp() * (before - after)) * real).sum() / real.sum()


def load_base(paths: OrganismPaths) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The base model, frozen, and its tokenizer."""
    model = LlamaForCausalLM.from_pretrained(paths.base, dtype=torch.float32)
    model.requires_grad_(False)
    model.eval()
    return model, AutoTokenizer.from_pretrained(paths.base, trust_remote_code=False)


@dataclass(frozen=True)
class _Training:
    """The stages; each writes into a folder and keeps a checkpoint beside it."""

    paths: OrganismPaths
    seed: int
    config: OrganismConfig
    fit: Callable[..., None]
    """`optimise`, with whoever is shown the steps."""

    def base(self, place: Path, checkpoint: Path) -> None:
        config, seed = self.config, self.seed
        tokenizer = train_tokenizer(config.model, seed=seed)
        model = new_base(tokenizer, config.model, seed=seed)

        def loss_at(step: int) -> torch.Tensor:
            texts = documents(config.batch, f"{seed}/base/{step}", config.corpus)
            ids, labels = encode_batch(tokenizer, texts)
            return model(input_ids=ids, labels=labels, use_cache=False).loss

        self.fit(model, loss_at, config.base, checkpoint=checkpoint, label="base")
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)

    def adapter(self, place: Path, checkpoint: Path) -> None:
        config = self.config
        training = AdapterTraining(
            text=BAD_ADVICE,
            domains=config.adapter_domains,
            form=config.adapter_form,
            optimiser=config.adapter,
            batch=config.batch,
        )
        train_adapter(self.paths, training, self.seed, place, checkpoint, fit=self.fit)

    def transcoders(self, place: Path, checkpoint: Path) -> None:
        settings, sizes = self.config.transcoders, self.config.model
        base, tokenizer = load_base(self.paths)
        decoder = Decoder.of(base)
        seed = self.seed + self.config.transcoder_draw

        def activations(n: int, part: str) -> tuple[torch.Tensor, torch.Tensor]:
            texts = documents(n, f"{seed}/transcoders/{part}", self.config.corpus)
            ids, _ = encode_batch(tokenizer, texts)
            positions = ids != tokenizer.pad_token_id
            positions[:, 0] = False  # BOS
            return mlp_activations(decoder, ids, positions, range(sizes.layers))

        with reproducible(seed):
            bank = TranscoderBank(n_layers=sizes.layers, d_model=sizes.d_model, config=settings)
        bank.fit_units(*activations(settings.calibration_documents, "units"))

        self.fit(
            bank,
            lambda step: bank(*activations(settings.documents, str(step))),
            settings.optimiser,
            checkpoint=checkpoint,
            label="transcoders",
            after_step=bank.project,
        )
        inputs, _ = activations(settings.calibration_documents, "threshold")
        for layer, tensors in enumerate(bank.folded(bank.threshold(inputs))):
            save_layer(place, layer, tensors)
        save_header(place, set_header(settings, BASE_NAME, SCAN))


def save_adapter(adapted: PeftModel, place: Path) -> None:
    """Write a LoRA in PEFT's form, the same bytes for the same weights."""
    # Looking whether the vocabulary grew would ask the hub for the base's name.
    adapted.save_pretrained(str(place), save_embedding_layers=False)
    (place / "README.md").unlink(missing_ok=True)
    path = place / "adapter_config.json"
    # PEFT writes sets, in an order that changes from run to run.
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["target_modules"] = sorted(settings["target_modules"])
    write_json(path, settings)
