"""Every family of models gives the numbers of plain Hugging Face: `make families` runs all kinds.

Here each family runs with the transcoders its public sets have, and a few without any.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from family_checks import LIMITS, differences, in_double
from tiny_families import PROMPT, RECIPES, Recipe, make_family, tiny_model

from em_circuits.contrast import Contrast
from em_circuits.interventions import mediate
from em_circuits.interventions.adapter_mediation import adapter_effects
from em_circuits.models import ModelPair
from em_circuits.models.family import Decoder
from em_circuits.models.foreign import has_circuit_tracer
from em_circuits.models.sites import READS, WRITES, FeatureSites
from pivotal_tokens.errors import RequestError

WITHOUT_TRANSCODERS = ("qwen2", "gemma-3-multimodal", "gpt-2")


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "plt") for name in RECIPES), *((name, "none") for name in WITHOUT_TRANSCODERS)],
)
def test_numbers_are_those_of_plain_hugging_face(name: str, kind: str, tmp_path: Path) -> None:
    found = differences(make_family(tmp_path, name), kind)
    assert found["doctor"] == "ok" and found["regimes"] == "all"
    assert all(float(found[figure]) <= LIMITS[figure] for figure in LIMITS if figure in found), (
        found
    )
    expected = set(LIMITS)
    if kind == "none" or not has_circuit_tracer():
        expected -= {figure for figure in LIMITS if figure.startswith("frozen")}
    elif name.startswith("gemma-2"):  # ablations are seen behind the soft-cap, frozen edges not
        expected -= {"frozen_linear = total effect"}
    assert expected <= set(found)
    for position in ("last", "early"):  # what is compared is there at all
        assert float(found[f"ablation, {position}, effect"]) > 1e-6


@pytest.mark.parametrize("name", ["llama-tied", "gemma-2-window"])
def test_edges_are_exact_where_passes_are_not_rounded(name: str, tmp_path: Path) -> None:
    # Measured edges differ by up to 3e-5 of the largest in float32: is that all rounding?
    found = in_double(make_family(tmp_path, name))
    assert len(found) == 5 and all(float(value) <= 1e-6 for value in found.values()), found


def test_neurons_of_experts_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"GptOssForCausalLM: 0 MLPs .*give --transcoders"):
        differences(make_family(tmp_path, "gpt-oss"), "none")


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_family_is_described_as_its_modules_are(name: str) -> None:
    recipe = RECIPES[name]
    model = tiny_model(recipe)
    decoder = Decoder.of(model)
    assert recipe.model in decoder.family.architectures
    assert len(decoder.layers) == recipe.n_layers and decoder.d_model == 64
    windows = {
        "mistral-window": (8, 8, 8),
        "gemma-2": (64, None, 64),
        "gemma-2-window": (8, None, 8),
        "gemma-3": (8, 8, 8, 8, 8, None),
        "gemma-3-multimodal": (8, 8, 8, 8, 8, None),
        "gpt-oss": (128, None, 128),
    }
    assert decoder.windows == windows.get(name, (None,) * recipe.n_layers)
    assert decoder.plain_attention == (name not in ("gemma-2", "gemma-2-window", "gpt-oss"))
    norms = {id(norm.module) for norm in decoder.norms}
    assert not any("vision" in n for n, m in model.named_modules() if id(m) in norms)


@pytest.mark.parametrize(
    ("name", "n_norms", "fit"),
    [
        ("Granite", 2, True),
        ("Glm4", 4, True),  # two of them were missed, and so left free where norms are frozen
        ("Nemotron", 2, False),  # of another formula: frozen norms are refused where it is run
        ("Olmo", None, None),  # norms without a gain: an AttributeError
        ("Olmo2", None, None),
    ],
)
def test_a_class_outside_the_table_has_all_its_norms_or_is_refused(
    name: str, n_norms: int | None, fit: bool | None
) -> None:
    model = tiny_model(Recipe(f"{name}Config", f"{name}ForCausalLM"))
    if n_norms is None:
        with pytest.raises(RequestError, match=f"{name}ForCausalLM is of no known family"):
            Decoder.of(model)
        return
    decoder, fits = Decoder.of(model), []
    for norm in decoder.norms:
        norm.module.register_forward_hook(
            lambda _m, args, output, norm=norm: fits.append(norm.fits(args[0], output))
        )
    model(torch.arange(3, 20)[None])
    assert len(fits) == 3 * n_norms + 1 and all(fits) == fit


@pytest.mark.parametrize("name", ["llama-tied", "gemma-2", "gpt-2"])
def test_what_is_normalised_is_what_the_gain_multiplies(name: str) -> None:
    model = tiny_model(RECIPES[name])
    decoder, seen = Decoder.of(model), {}
    with FeatureSites.of(decoder, "ln2.hook_normalized", "hook_mlp_out").hooked(
        read=lambda layer, x: seen.__setitem__(layer, x)
    ):
        model(torch.arange(3, 20)[None])
    for x in seen.values():
        assert torch.allclose(x.square().mean(-1), torch.ones(()), atol=1e-3)


def test_a_hook_point_that_no_family_has_is_refused_with_those_that_are_known() -> None:
    decoder = Decoder.of(tiny_model(RECIPES["llama-tied"]))
    with pytest.raises(RequestError) as refused:
        FeatureSites.of(decoder, "hook_resid_post", "hook_mlp_out")
    assert "read at 'hook_resid_post'" in str(refused.value)
    assert all(hook in str(refused.value) for hook in READS)
    with pytest.raises(RequestError) as refused:
        FeatureSites.of(decoder, "hook_resid_mid", "hook_resid_mid")
    assert "write to 'hook_resid_mid'" in str(refused.value)
    assert all(hook in str(refused.value) for hook in WRITES)


@pytest.mark.parametrize(("name", "kind"), [("gpt-2", "none"), ("gemma-3-multimodal", "plt")])
def test_what_carries_the_shift_is_told_on_families_of_other_makes(
    name: str, kind: str, tmp_path: Path
) -> None:
    """Adapter, features and heads of a model with one q k v matrix, and of one within another."""
    with ModelPair.load(make_family(tmp_path, name).settings(kind)) as pair:
        ids = pair.input_ids(PROMPT)
        change = pair.merged.next_logits(ids) - pair.base.next_logits(ids)
        order = change.argsort().tolist()
        found = mediate(pair, ids, Contrast(tuple(order[-3:]), tuple(order[:3])), heads=True)
        assert found.adapter is not None and found.heads is not None
        layers = len(pair.merged.decoder.layers)
        assert len(found.heads.heads) == layers * pair.merged.decoder.n_heads
        weights = Contrast(tuple(order[-3:]), tuple(order[:3])).weights(len(change))
        effects = adapter_effects(pair, ids, weights)
        whole = effects.paths.integrated.total
        assert abs(whole - effects.shift) <= 1e-2 * abs(effects.shift)


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_prepared_mask_is_the_one_that_transformers_makes(name: str) -> None:
    model = tiny_model(RECIPES[name]).eval()
    model.set_attn_implementation("eager")
    decoder, ids = Decoder.of(model), torch.randint(5, 60, (2, 9))
    mask = decoder.causal_mask(9)
    windowed = name in ("mistral-window", "gemma-2-window", "gemma-3", "gemma-3-multimodal")
    assert (mask is None) == windowed
    with torch.no_grad():
        plain, masked = (model(input_ids=ids, attention_mask=m).logits for m in (None, mask))
        unmasked = model(input_ids=ids, attention_mask=ids.new_zeros((1, 1, 9, 9)).float()).logits
    assert torch.equal(plain, masked)
    if name != "gpt-2":  # whose attention masks once more itself
        assert not torch.allclose(plain, unmasked)
    model.set_attn_implementation("sdpa" if decoder.plain_attention else "eager")
    assert (decoder.causal_mask(9) is None) == (windowed or decoder.plain_attention)
