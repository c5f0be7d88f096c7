"""A whole training run: text to pieces, pieces to a set, the set to its report.

report = train_and_measure(out, model, tokenizer, decoders, documents, ...)
out / "report.json", out / "REPORT.md"
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from em_circuits.models.family import Decoder
from em_circuits.models.text import cut_pieces, encode, render_turns
from em_circuits.models.transcoder_files import TranscoderFiles
from em_circuits.models.transcoders import load_transcoders
from em_circuits.progress import Progress, no_progress
from em_circuits.training.activations import ActivationStream, MlpSource, positions
from em_circuits.training.optimise import OptimiserConfig, claim
from em_circuits.training.settings import SetTraining
from em_circuits.training.transcoder_quality import (
    Maps,
    TrainedSetReport,
    compared_maps,
    layer_fits,
    quality_prose,
    replacements,
)
from em_circuits.training.transcoder_set import (
    KEPT_MAPS,
    SetRecipe,
    split_pieces,
    train_transcoders,
)
from pivotal_tokens.artefacts import content_key, write_atomic, write_json
from pivotal_tokens.errors import RequestError
from pivotal_tokens.prompts.chats import Chat

REPORT, PROSE = "report.json", "REPORT.md"
_PIECE = 256
"""Tokens of a piece of text."""


@dataclass(frozen=True)
class TrainedModels:
    """Whose MLPs are read.

    Attributes:
        models: One; or base and merged, for their difference.
        tokenizer: Of the base.
        name: Of the base.
        fingerprints: Of what is read.
    """

    models: tuple[nn.Module, ...]
    tokenizer: PreTrainedTokenizerBase
    name: str
    fingerprints: tuple[str, ...]


def train_and_measure(
    out: Path,
    read: TrainedModels,
    documents: Sequence[str | Chat],
    asked: SetTraining,
    *,
    about: str,
    seed: int = 0,
    progress: Progress = no_progress,
    also: Callable[[Maps], dict[str, Any]] | None = None,
) -> TrainedSetReport:
    """Train a set into a directory and measure it on held-out text; a killed run resumes.

    Args:
        about: The text, in words.
        also: Gives more fields of the report.

    Raises:
        RequestError: If `out` holds another training, or the text is too short.
    """
    decoders = tuple(Decoder.of(model) for model in read.models)
    pieces = [
        cut_pieces(encode(read.tokenizer, _text(read.tokenizer, d)), _PIECE) for d in documents
    ]
    train, held = split_pieces(pieces, seed, asked.tokens)
    source = MlpSource(decoders, asked.chosen(len(decoders[0].layers)))
    text = content_key([list(map(str, documents)), asked.tokens])
    recipe = _recipe(read, source, train, asked, text)
    claim(out, seed, recipe)
    if (out / REPORT).is_file():
        return TrainedSetReport.model_validate_json((out / REPORT).read_bytes())
    found = train_transcoders(
        out, source, train, recipe, model_name=read.name, seed=seed, progress=progress
    )
    files = TranscoderFiles.read("--out", str(out), out)
    parameter = next(read.models[0].parameters())
    loaded = load_transcoders(files, device=parameter.device, dtype=parameter.dtype, place="gpu")
    maps = compared_maps(loaded, found, source.layers)
    tokens = positions(train)
    report = TrainedSetReport(
        path=str(out),
        target=asked.target,
        model=read.name,
        text=about,
        tokens=tokens,
        passes=recipe.optimiser.steps * recipe.batch / tokens,
        held_out=positions(held),
        features=asked.features,
        gate=asked.gate,
        k=asked.k,
        buffer_mb=min(tokens, recipe.buffer) * _bytes(read, recipe.at_once) / 1e6,
        layers=layer_fits(source, maps, held, progress),
    )
    if asked.target != "difference":
        loss, replaced = replacements(read.models[0], maps, held, progress)
        report = report.model_copy(update={"loss": loss, "replacements": replaced})
    if also is not None:
        report = report.model_copy(update=also(maps))
    write_atomic(out / PROSE, quality_prose(report))
    write_json(out / REPORT, report.model_dump(mode="json"))
    for kept in out.glob(f"{KEPT_MAPS}*"):
        kept.unlink()
    return report


def _recipe(
    read: TrainedModels,
    source: MlpSource,
    train: list[list[int]],
    asked: SetTraining,
    text: str,
) -> SetRecipe:
    at_once = min(asked.at_once or len(source.layers), len(source.layers))
    buffer = max(asked.batch, int(asked.buffer_gb * 1e9) // _bytes(read, at_once))
    one_pass = ActivationStream(source, train, buffer, asked.batch, seed=0).steps_per_pass
    if not one_pass:
        raise RequestError(f"the text is shorter than a batch of {asked.batch}; give more of it")
    steps = asked.steps or 4 * one_pass
    rate = asked.learning_rate
    return SetRecipe(
        bank=asked.bank,
        optimiser=OptimiserConfig(steps=steps, learning_rate=rate, warmup=steps // 20),
        target=asked.target,
        layers=source.layers,
        at_once=at_once,
        batch=asked.batch,
        buffer=buffer,
        models=read.fingerprints,
        text=text,
        dtype=str(next(read.models[0].parameters()).dtype).removeprefix("torch."),
    )


def _bytes(read: TrainedModels, n_layers: int) -> int:
    """Of one position's activations."""
    parameter = next(read.models[0].parameters())
    return 2 * n_layers * Decoder.of(read.models[0]).d_model * parameter.element_size()


def _text(tokenizer: PreTrainedTokenizerBase, document: str | Chat) -> str:
    return document if isinstance(document, str) else render_turns(tokenizer, document)[0]
