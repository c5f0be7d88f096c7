"""Random configurations of every family: the pair loads and doctor passes, or says what is not so.

`make families` tries a hundred; here are a few.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from tiny_families import LLAMA3_ROPE, PROMPT, RECIPES, MadeFamily, Recipe, tiny_model, write_pair

from em_circuits.graphs import AttributionSettings
from em_circuits.graphs.memory import memory_plan
from em_circuits.models import ModelPair
from em_circuits.models.family import Decoder
from em_circuits.models.health import check_pair
from em_circuits.models.sites import READS, WRITES
from em_circuits.models.source import locate_all
from pivotal_tokens.errors import RequestError

EXAMPLES = int(os.environ.get("FAMILY_EXAMPLES", "6"))
NAMES = ("llama-tied", "qwen2", "qwen3", "mistral", "gemma-2", "gemma-3", "gpt-2", "gpt-oss")
ROPES: list[dict[str, Any] | None] = [
    None,
    LLAMA3_ROPE,
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64},
]
REFUSALS = ("transformerlens backend:", "nnsight backend:")


@st.composite
def configurations(draw: st.DrawFn) -> tuple[str, dict[str, Any], tuple[str, str], str, str]:
    """Family, fields of its configuration, hook points, kind of nodes, backend."""
    name = draw(st.sampled_from(NAMES))
    pick = lambda *values: draw(st.sampled_from(values))  # noqa: E731
    n_heads = pick(1, 2, 4, 8)
    grouped = draw(st.sampled_from([n for n in (1, 2, 4, 8) if n_heads % n == 0]))
    window = pick(None, 2, 5, 8, 64)
    hooks = draw(st.sampled_from(list(READS))), draw(st.sampled_from(list(WRITES)))
    kind, backend = pick("plt", "none"), pick("auto", "auto", "transformerlens", "nnsight")
    if name == "gpt-2":
        fields: dict[str, Any] = {
            "n_head": n_heads,
            "n_embd": n_heads * pick(8, 16),
            "n_inner": pick(None, 40),
            "n_layer": pick(1, 3),
            "activation_function": pick("gelu_new", "relu", "gelu"),
            "scale_attn_weights": pick(True, True, False),
            "scale_attn_by_inverse_layer_idx": pick(True, False),
            "reorder_and_upcast_attn": pick(True, False),
            "tie_word_embeddings": pick(True, False),
        }
        return name, fields, hooks, kind, backend
    head_dim = pick(8, 16, 32)
    fields = {
        "num_attention_heads": n_heads,
        "num_key_value_heads": grouped,
        "num_hidden_layers": pick(1, 2, 3),
        "hidden_size": n_heads * head_dim * (1 if name == "qwen2" else pick(1, 1, 2)),
        "intermediate_size": pick(24, 40, 128),
        "tie_word_embeddings": pick(True, False),
        "rms_norm_eps": pick(1e-6, 1e-3),
        "vocab_size": pick(1280, 1408),
        "rope_theta": pick(10000.0, 500000.0),
    }
    if name != "qwen2":
        fields["head_dim"] = pick(None, head_dim) if name == "llama-tied" else head_dim
    act = "hidden_activation" if name.startswith("gemma") else "hidden_act"
    fields[act] = pick("silu", "gelu_pytorch_tanh", "relu", "quick_gelu")
    if name in ("llama-tied", "qwen3", "gemma-2", "gemma-3"):
        fields["attention_bias"] = pick(True, False)
    if name == "llama-tied":
        fields |= {"mlp_bias": pick(True, False), "rope_scaling": draw(st.sampled_from(ROPES))}
    if name in ("mistral", "gemma-2", "gemma-3", "gpt-oss"):
        fields["sliding_window"] = window or 64
    if name == "mistral":
        fields["sliding_window"] = window
    if name in ("qwen2", "qwen3"):
        fields |= {"use_sliding_window": window is not None, "sliding_window": window or 64}
        fields["max_window_layers"] = pick(0, 1, 3)
    if name.startswith("gemma"):
        fields["attn_logit_softcapping"] = pick(None, 5.0)
        fields["final_logit_softcapping"] = pick(None, 10.0)
        fields["query_pre_attn_scalar"] = pick(16, 64)
    if name == "gpt-oss":
        fields |= {"num_local_experts": pick(2, 4), "num_experts_per_tok": pick(1, 2)}
    return name, fields, hooks, kind, backend


@given(configurations())
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
def test_doctor_passes_or_names_the_cause(made: tuple) -> None:
    name, fields, hooks, kind, backend = made
    recipe = RECIPES[name]
    recipe = Recipe(recipe.config, recipe.model, {}, recipe.targets, hooks)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        pair_files = MadeFamily(name, recipe, *(root / part for part in ("base", "lora", "plt")))
        model = tiny_model(recipe, **fields)
        write_pair(pair_files, model)
        chosen = pair_files.settings(kind, backend=backend)
        try:
            assert memory_plan(chosen, locate_all(chosen), AttributionSettings()).total > 0
            with ModelPair.load(chosen) as pair:
                checks = list(check_pair(pair, pair.input_ids(PROMPT)))
        except RequestError as refused:
            event("refused")
            assert kind == "none" and name == "gpt-oss"
            assert "cannot be nodes, give --transcoders" in str(refused)
        else:
            bad = [check for check in checks if not check.ok]
            assert not any(check.fatal for check in bad), bad
            unbuilt = [check for check in bad if "replacement" in check.name]
            assert bad == unbuilt
            for check in unbuilt:
                assert any(part in check.found for part in REFUSALS)
                assert backend != "auto" or _untraceable(model, hooks)
            event("doctor warns that there are no frozen edges" if unbuilt else "doctor passes")


def _untraceable(model: Any, hooks: tuple[str, str]) -> bool:
    """The few that no backend builds: the experts' norm has no step that is its normalised side."""
    family = Decoder.of(model).family.name
    return (family == "GPT-OSS" and hooks[0] == "ln2.hook_normalized") or family == "GPT-2"
