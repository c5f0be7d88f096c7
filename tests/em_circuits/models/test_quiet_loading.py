"""Loading says what this project says, and no false alarm of transformers."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as theirs

from em_circuits.models.pair import load_causal_lm, load_tokenizer
from em_circuits.models.source import Source

LARGE = 100_001
"""Words from which transformers looks whether a tokenizer is one of Mistral's."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded model with a large vocabulary."""
    found = tmp_path_factory.mktemp("large")
    raw = Tokenizer(models.WordLevel({f"w{i}": i for i in range(LARGE)}, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=raw).save_pretrained(found)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
    config = LlamaConfig(vocab_size=LARGE, num_hidden_layers=1, tie_word_embeddings=True, **sizes)
    LlamaForCausalLM(config).save_pretrained(found, max_shard_size="1MB")
    assert len(list(found.glob("*.safetensors"))) > 1
    return found


def source(folder: Path, model_type: str) -> Source:
    """The folder, as one of some kind of model, written by the version with the false alarm."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": model_type, "transformers_version": "4.57.3"}
    (folder / "config.json").write_text(json.dumps(config))
    return Source(str(folder), folder, None)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Warnings about tokenizers, however loud a test before this one has left transformers."""
    logger, found = theirs.get_logger("transformers.tokenization_utils_base"), []
    heard = logging.Handler()
    heard.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    monkeypatch.setattr(logger, "handlers", [*logger.handlers, heard])
    monkeypatch.setattr(logger, "level", logging.WARNING)
    monkeypatch.setattr(logger, "disabled", False)
    logger.manager._clear_cache()  # type: ignore[attr-defined]
    return found


def test_a_model_is_loaded_without_a_word(
    folder: Path, said: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    shown, of = theirs.is_progress_bar_enabled(), source(folder, "llama")
    model = load_causal_lm("--base", of, device=torch.device("cpu"), dtype=torch.float32)
    tokenizer = load_tokenizer("--base", of)
    assert (capfd.readouterr().err, said) == ("", [])
    assert theirs.is_progress_bar_enabled() is shown
    assert model.config.vocab_size == len(tokenizer) == LARGE


def test_the_warning_stays_where_it_is_true(folder: Path, said: list[str]) -> None:
    try:
        load_tokenizer("--base", source(folder, "mistral"))
        assert "fix_mistral_regex" in "".join(said)
    finally:
        source(folder, "llama")
