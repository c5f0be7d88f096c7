"""The replacement model computes the prompt as given, whatever its tokenizer would do to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_families import PROMPT, make_family

from em_circuits.models import ModelPair, encode
from em_circuits.models.health import check_replacement
from pivotal_tokens.errors import RequestError


@pytest.mark.parametrize("backend", ["transformerlens", "nnsight"])
@pytest.mark.parametrize("place", ["first", "last"])
def test_padding_with_a_token_of_the_prompt_masks_nothing(
    tmp_path: Path, backend: str, place: str
) -> None:
    made = make_family(tmp_path, "llama-tied")
    with ModelPair.load(made.settings(backend=backend)) as pair:
        ids = torch.tensor(encode(pair.tokenizer, PROMPT))
        token = int(ids[0] if place == "first" else ids[-1])
        pair.tokenizer.padding_side = "left" if place == "first" else "right"
        pair.tokenizer.pad_token = pair.tokenizer.convert_ids_to_tokens(token)
        before = pair.tokenizer.padding_side, pair.tokenizer.pad_token, pair.tokenizer.bos_token
        assert check_replacement(pair.base, ids).ok
        after = pair.tokenizer.padding_side, pair.tokenizer.pad_token, pair.tokenizer.bos_token
        assert before == after


@pytest.mark.parametrize("backend", ["transformerlens", "nnsight"])
def test_a_tokenizer_is_left_as_it_was(tmp_path: Path, backend: str) -> None:
    """TransformerLens gives its tokenizer the tokens that it lacks."""
    made = make_family(tmp_path, "qwen2")
    with ModelPair.load(made.settings(backend=backend)) as pair:
        pair.tokenizer.bos_token = pair.tokenizer.pad_token = None
        _ = pair.base.replacement
        assert pair.tokenizer.bos_token is None and pair.tokenizer.pad_token is None


def test_a_prompt_without_a_special_token_is_attributed_as_it_is(tmp_path: Path) -> None:
    made = make_family(tmp_path, "gemma-3")
    folder = tmp_path / "gemma-3-1b-it"
    made.base.rename(folder)  # circuit-tracer has a rule of its own for such a name
    settings = made.settings(trust_base=True).model_copy(update={"base": str(folder)})
    with ModelPair.load(settings) as pair:
        ids = torch.tensor([300, 301, 302, 303, 304, 305])
        replacement = pair.base.replacement
        assert replacement.zero_positions == slice(0, 1)
        assert torch.equal(replacement.ensure_tokenized(ids), ids)
        assert check_replacement(pair.base, ids).ok


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("llama-tied", "transformerlens"),
        ("qwen2", "transformerlens"),
        ("mistral", "transformerlens"),
        ("mistral-window", "nnsight"),
        ("gemma-3", "nnsight"),
        ("gpt-2", "transformerlens"),
    ],
)
def test_the_default_backend_is_one_that_builds_the_family(
    tmp_path: Path, name: str, backend: str
) -> None:
    with ModelPair.load(make_family(tmp_path, name).settings("none")) as pair:
        assert pair.settings.backend == "auto" and pair.base.backend == backend


@pytest.mark.parametrize(
    ("name", "backend", "said"),
    [
        ("gemma-3", "transformerlens", "not Gemma3ForCausalLM; use --backend nnsight"),
        ("mistral-window", "transformerlens", "attention reaches 8 tokens back, less than"),
        ("gpt-2", "nnsight", "no map of GPT2LMHeadModel; use --edges full"),
    ],
)
def test_a_backend_that_cannot_build_a_family_says_why(
    tmp_path: Path, name: str, backend: str, said: str
) -> None:
    settings = make_family(tmp_path, name).settings(backend=backend)
    with ModelPair.load(settings) as pair, pytest.raises(RequestError, match=said):
        _ = pair.base.replacement
