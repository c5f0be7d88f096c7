"""Where an adapter's effect goes: exact splits, measured shares, and their oracles."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from subjects import Subject, organism_settings, organism_subject

from em_circuits.bases import neuron_parts
from em_circuits.interventions import mediate
from em_circuits.interventions.adapter_mediation import AdapterMediation, adapter_effects
from em_circuits.interventions.adapter_paths import CARRIERS, AdapterPaths, adapter_paths
from em_circuits.interventions.adapter_shares import FIGURES, HeldRuns, measured_shares
from em_circuits.interventions.adapter_writes import AdapterWrites, Readers
from em_circuits.models import ModelPair

LAYER = 1


def write_rank_one(folder: Path, a: torch.Tensor, b: torch.Tensor) -> None:
    """A rank-1 LoRA on ``down_proj`` of one layer, alpha 1."""
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "r": 1,
        "lora_alpha": 1,
        "target_modules": ["down_proj"],
        "layers_to_transform": [LAYER],
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "em-circuits/organism/base",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    name = f"base_model.model.model.layers.{LAYER}.mlp.down_proj"
    tensors = {f"{name}.lora_A.weight": a[None], f"{name}.lora_B.weight": b[:, None]}
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "adapter_model.safetensors")


@contextlib.contextmanager
def rank_one_subject(folder: Path) -> Iterator[Subject]:
    """The organism's base with a rank-1 ``down_proj`` adapter: one step along the gradient."""
    made = organism_subject()
    with made.pair as pair:
        module = pair.base.hf.get_submodule(f"model.layers.{LAYER}.mlp.down_proj")
        seen: dict[str, torch.Tensor] = {}

        def hook(_module: object, args: tuple, output: torch.Tensor) -> torch.Tensor:
            seen["x"] = args[0][0].detach()
            seen["nudge"] = torch.zeros_like(output, requires_grad=True)
            return output + seen["nudge"]

        handle = module.register_forward_hook(hook)
        logits = pair.base.hf(input_ids=made.input_ids[None]).logits[0, -1]
        (gradient,) = torch.autograd.grad(made.groups.weights(len(logits)) @ logits, seen["nudge"])
        handle.remove()
    x, g = seen["x"][-1], gradient[0, -1]
    write_rank_one(folder, x / x.norm(), 3 * g / g.norm() / x.norm())
    settings = organism_settings().model_copy(update={"adapter": str(folder)})
    with ModelPair.load(settings) as pair:
        yield Subject("rank one", pair, made.input_ids, made.groups)


@pytest.fixture(scope="module")
def rank_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    with rank_one_subject(tmp_path_factory.mktemp("rank-one") / "adapter") as made:
        yield made


@pytest.fixture(params=["organism or lifelike", "rank one"])
def case(request: pytest.FixtureRequest, subject: Subject) -> Subject:
    """The three pairs: four attention modules of rank 4, and two with one rank on ``down_proj``."""
    if request.param == "rank one":
        if subject.name != "organism":
            pytest.skip("once is enough")
        return request.getfixturevalue("rank_one")
    return subject


_SOLVED: dict[str, tuple[AdapterWrites, AdapterPaths]] = {}


@pytest.fixture
def solved(case: Subject) -> tuple[AdapterWrites, AdapterPaths]:
    if case.name not in _SOLVED:
        writes = AdapterWrites.of(case.pair, case.input_ids)
        paths = adapter_paths(case.pair, writes, case.input_ids, weights_of(case))
        _SOLVED[case.name] = writes, paths
    return _SOLVED[case.name]


@pytest.fixture
def by_neurons(case: Subject, solved) -> AdapterPaths:
    """The same writes, with neurons for features."""
    writes, _ = solved
    parts = neuron_parts(case.pair.base)
    return adapter_paths(
        case.pair, writes, case.input_ids, weights_of(case), parts=parts, points=(8,)
    )


def weights_of(case: Subject) -> torch.Tensor:
    return case.groups.weights(len(case.pair.base.next_logits(case.input_ids)))


def shift_of(case: Subject) -> float:
    base, merged = (
        float(case.groups.value(m.next_logits(case.input_ids)[None])) for m in case.pair.models
    )
    return merged - base


def contrast_with(case: Subject, writes: AdapterWrites, t: float) -> torch.Tensor:
    """The contrast of the base with t times the writes added, differentiable by nothing."""
    with torch.no_grad(), writes.added([t * w[None] for w in writes.written]):
        logits = case.pair.base.hf(input_ids=case.input_ids[None]).logits[0, -1]
    return weights_of(case).double() @ logits.double()


def test_the_base_with_the_writes_added_is_the_merged_model(case: Subject, solved) -> None:
    writes, _ = solved
    with torch.no_grad(), writes.added([w[None] for w in writes.written]):
        logits = case.pair.base.hf(input_ids=case.input_ids[None]).logits[0, -1]
    expected = case.pair.merged.next_logits(case.input_ids)
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_parts_sum_to_the_first_order_effect(case: Subject, solved) -> None:
    writes, paths = solved
    # The oracle: reverse-mode derivative by t of one run, nothing split.
    t = torch.zeros((), requires_grad=True)
    with torch.enable_grad(), writes.added([t * w[None] for w in writes.written]):
        logits = case.pair.base.hf(input_ids=case.input_ids[None]).logits[0, -1]
        (slope,) = torch.autograd.grad(weights_of(case) @ logits, t)
    first = paths.first_order
    scale = float(first.carriers.abs().max())
    assert abs(first.total - float(slope)) <= 1e-5 * scale
    nodes = sum(values.sum() for values in first.nodes) + first.unranked.sum()
    assert abs(float(nodes) - float(slope)) <= 1e-5 * scale
    ahead, behind = (contrast_with(case, writes, s * 1e-2) for s in (1, -1))
    assert float(ahead - behind) / 2e-2 == pytest.approx(float(slope), rel=1e-2)


def test_the_first_order_effect_is_that_of_the_adapters_scale(rank_one: Subject) -> None:
    """With one module the line is the LoRA scaled: W + t B A."""
    writes = AdapterWrites.of(rank_one.pair, rank_one.input_ids)
    paths = adapter_paths(
        rank_one.pair, writes, rank_one.input_ids, weights_of(rank_one), points=(4,)
    )
    name = f"model.layers.{LAYER}.mlp.down_proj"
    base, merged = (m.hf.get_submodule(name).weight for m in rank_one.pair.models)
    t = torch.zeros((), requires_grad=True)
    weight = base.detach() + t * (merged - base).detach()
    logits = torch.func.functional_call(
        rank_one.pair.base.hf,
        {f"{name}.weight": weight},
        kwargs={"input_ids": rank_one.input_ids[None]},
    ).logits[0, -1]
    (slope,) = torch.autograd.grad(weights_of(rank_one) @ logits, t)
    scale = float(paths.first_order.carriers.abs().max())
    assert abs(paths.first_order.total - float(slope)) <= 1e-5 * scale


def test_integrated_parts_sum_to_the_measured_shift(case: Subject, solved) -> None:
    _, paths = solved
    assert shift_of(case) > 0.5
    assert paths.integrated.total == pytest.approx(shift_of(case), rel=0.02)


@pytest.mark.parametrize("which", ["first_order", "integrated"])
def test_nodes_features_and_heads_sum_to_their_carriers(case: Subject, solved, which: str) -> None:
    """Forward mode (readers) and reverse mode (ranks) are two ways to the same sums."""
    split = getattr(solved[1], which)
    scale = float(split.carriers.abs().max())
    by_node = sum(values.sum((1, 2)) for values in split.nodes) + split.unranked
    assert (by_node - split.carriers).abs().max() <= 1e-5 * scale
    at = CARRIERS.index
    assert abs(split.heads.sum() - split.carriers[at("attention")]) <= 1e-5 * scale
    assert abs(split.features.sum() - split.carriers[at("features")]) <= 1e-5 * scale
    assert split.unranked.abs().max() <= 1e-4 * scale


def test_neurons_are_all_of_the_mlps(case: Subject, solved, by_neurons: AdapterPaths) -> None:
    """Nothing remains, the other carriers are as they were, and every sum holds."""
    at = CARRIERS.index
    own, split = solved[1].first_order, by_neurons.first_order
    scale = float(own.carriers.abs().max())
    for name in ("straight", "attention"):
        assert abs(split.carriers[at(name)] - own.carriers[at(name)]) <= 1e-5 * scale
    assert abs(split.carriers[at("remainder")]) <= 1e-5 * scale
    assert abs(split.total - own.total) <= 1e-5 * scale
    assert abs(split.features.sum() - split.carriers[at("features")]) <= 1e-5 * scale
    by_node = sum(values.sum((1, 2)) for values in split.nodes) + split.unranked
    assert (by_node - split.carriers).abs().max() <= 1e-5 * scale
    assert by_neurons.integrated.total == pytest.approx(shift_of(case), rel=0.02)


def test_neurons_that_respond_are_mlps_that_respond(case: Subject, solved) -> None:
    """Whatever the transcoder explains of them."""
    writes, base = solved[0], case.pair.base
    rows = [w[None] for w in writes.written]
    weights = weights_of(case)
    own = HeldRuns.of(base, writes, case.input_ids, weights)
    neurons = HeldRuns.of(base, writes, case.input_ids, weights, neuron_parts(base))
    for others in (frozenset(), frozenset({"attention"})):
        mlps = float(own.contrast(rows, others | {"features", "remainder"}))
        assert float(neurons.contrast(rows, others | {"features"})) == pytest.approx(mlps, abs=1e-4)
        nothing = float(own.contrast(rows, others))
        rest = float(neurons.contrast(rows, others | {"remainder"}))
        assert rest == pytest.approx(nothing, abs=1e-4)


def test_each_carrier_is_the_derivative_of_a_run_that_lets_only_it_read_first(
    case: Subject, solved
) -> None:
    """Oracle by finite differences: the residual as others read it first is the base's own."""
    writes, paths = solved
    base, readers = case.pair.base, Readers.of(case.pair.base)
    weights = weights_of(case).double()
    residuals = HeldRuns.of(base, writes, case.input_ids, weights_of(case)).residuals

    def entries(t: float) -> list[torch.Tensor]:
        """The residual at each reader when no reader answers to t times the writes."""
        seen: dict[int, torch.Tensor] = {}
        handles = []
        for i, norm in enumerate(readers.all):

            def hook(_m: object, args: tuple, i: int = i) -> tuple:
                seen[i] = args[0][0]
                return (residuals[i][None],)

            handles.append(norm.register_forward_pre_hook(hook))
        with torch.no_grad(), writes.added([t * w[None] for w in writes.written]):
            base.hf(input_ids=case.input_ids[None])
        for handle in handles:
            handle.remove()
        return [seen[i] for i in range(len(readers.all))]

    def contrast(reads: dict[int, torch.Tensor]) -> float:
        """Chosen readers read a change more than what stands there; the rest runs free."""
        handles = [
            readers.all[i].register_forward_pre_hook(lambda _m, args, d=d: (args[0] + d,))
            for i, d in reads.items()
        ]
        with torch.no_grad():
            logits = base.hf(input_ids=case.input_ids[None]).logits[0, -1].double()
        for handle in handles:
            handle.remove()
        return float(weights @ logits)

    step = 1e-2
    changes = [(a - b) / 2 for a, b in zip(entries(step), entries(-step), strict=True)]
    n = len(readers.mlp)
    groups = {"attention": range(n), "mlp": range(n, 2 * n), "straight": range(2 * n, 2 * n + 1)}
    found = {}
    for name, numbers in groups.items():
        up, down = (contrast({i: s * changes[i] for i in numbers}) for s in (1, -1))
        found[name] = (up - down) / 2 / step
    first = dict(zip(CARRIERS, paths.first_order.carriers.tolist(), strict=True))
    expected = {
        "attention": first["attention"],
        "mlp": first["features"] + first["remainder"],
        "straight": first["straight"],
    }
    scale = max(map(abs, expected.values()))
    for name, value in found.items():
        assert value == pytest.approx(expected[name], abs=5e-3 * scale), name


def test_straight_is_a_run_with_all_downstream_outputs_held(rank_one: Subject) -> None:
    base, merged = rank_one.pair.models
    writes = AdapterWrites.of(rank_one.pair, rank_one.input_ids)
    found = measured_shares(base, writes, rank_one.input_ids, weights_of(rank_one))
    outputs: dict[tuple[int, str], torch.Tensor] = {}
    layers = base.hf.model.layers

    def run(model, *, record: bool) -> torch.Tensor:
        handles = []
        for i, layer in enumerate(model.hf.model.layers):
            for kind, module in (("attention", layer.self_attn), ("mlp", layer.mlp)):
                if i <= LAYER:
                    continue

                def hook(_m, _args, output, key=(i, kind)):
                    if record:
                        outputs[key] = output
                        return None
                    return outputs[key]

                handles.append(module.register_forward_hook(hook))
        with torch.no_grad():
            logits = model.hf(input_ids=rank_one.input_ids[None]).logits[0, -1]
        for handle in handles:
            handle.remove()
        return weights_of(rank_one).double() @ logits.double()

    before = run(base, record=True)
    assert len(outputs) == 2 * (len(layers) - LAYER - 1)
    expected = float(run(merged, record=False) - before)
    assert float(found.alone[0]) == pytest.approx(expected, abs=1e-5)


def test_everything_responding_is_the_shift_and_pairs_name_the_interaction(case: Subject) -> None:
    writes = AdapterWrites.of(case.pair, case.input_ids)
    base = case.pair.base
    found = measured_shares(base, writes, case.input_ids, weights_of(case))
    alone = dict(zip(FIGURES, found.alone.tolist(), strict=True))
    assert alone["together"] == pytest.approx(shift_of(case), abs=1e-4)
    runs = HeldRuns.of(base, writes, case.input_ids, weights_of(case))
    rows = [w[None] for w in writes.written]

    def contrast(*names: str) -> float:
        return float(runs.contrast(rows, frozenset(names)))

    assert contrast() - runs.base == pytest.approx(alone["straight"], abs=1e-5)
    both = contrast("features", "attention")
    expected = both - contrast() - alone["features"] - alone["attention"]
    assert float(found.pairs[0]) == pytest.approx(expected, abs=1e-5)
    gone = contrast("features", "attention", "remainder") - both
    assert float(found.held[2]) == pytest.approx(gone, abs=1e-5)


def test_features_and_remainder_together_are_the_mlps(case: Subject) -> None:
    """Attention held: the MLPs themselves respond, which needs no transcoder to say."""
    base = case.pair.base
    writes = AdapterWrites.of(case.pair, case.input_ids)
    runs = HeldRuns.of(base, writes, case.input_ids, weights_of(case))
    rows = [w[None] for w in writes.written]
    found = float(runs.contrast(rows, frozenset({"features", "remainder"})))
    readers = Readers.of(base)
    handles = [
        norm.register_forward_pre_hook(lambda _m, _args, x=x: (x[None],))
        for norm, x in zip(readers.attention, runs.residuals, strict=False)
    ]
    value = float(contrast_with(case, writes, 1.0))
    for handle in handles:
        handle.remove()
    assert found == pytest.approx(value, abs=1e-5)


def test_random_writes_are_of_equal_size_and_do_little(rank_one: Subject) -> None:
    writes = AdapterWrites.of(rank_one.pair, rank_one.input_ids)
    for real, random in zip(writes.written, writes.random(5, seed=1), strict=True):
        assert torch.allclose(random.norm(dim=-1), real.norm(dim=-1).expand(5, -1), rtol=1e-3)
        assert not torch.allclose(random[0], random[1])
    found = measured_shares(
        rank_one.pair.base, writes, rank_one.input_ids, weights_of(rank_one), n_random=20
    )
    assert found.random.shape == (20, len(FIGURES))
    assert float(found.alone[-1]) > float(found.random[:, -1].quantile(0.975))


def test_the_result_answers_in_a_sentence_and_in_json(rank_one: Subject) -> None:
    effects = adapter_effects(rank_one.pair, rank_one.input_ids, weights_of(rank_one))
    found = AdapterMediation.of(effects)
    record = json.loads(found.model_dump_json())
    json.dumps(record, allow_nan=False)
    parts = [record["shares"][name] for name in CARRIERS]
    assert sum(parts) == pytest.approx(1, abs=0.02)
    assert found.sentence.startswith(f"the adapter writes {parts[0]:.0%} of the shift straight to")
    assert found.completeness == pytest.approx(sum(parts))
    alone = record["alone"]
    four = sum(alone[name] for name in CARRIERS)
    assert record["interaction"] == pytest.approx(alone["together"] - four)
    (node,) = found.nodes
    assert (node.layer, node.rank) == (LAYER, 0)
    assert node.part == pytest.approx(sum(parts) * effects.shift, rel=1e-4)
    assert {head.layer for head in found.heads if abs(head.part) > 1e-9} <= {2, 3}


def test_a_shift_away_from_evil_has_no_shares(rank_one: Subject) -> None:
    effects = adapter_effects(rank_one.pair, rank_one.input_ids, -weights_of(rank_one))
    found = AdapterMediation.of(effects)
    assert found.shares.straight is None and found.interaction is None
    assert found.random.together is None and "no share" in found.sentence
    assert found.integrated.straight is not None


def test_mediation_holds_it_and_says_why_not_of_a_merged_model(
    rank_one: Subject, tmp_path: Path
) -> None:
    pair, ids, words = rank_one.pair, rank_one.input_ids, rank_one.groups
    mediation = mediate(pair, ids, words)
    assert mediation.adapter is not None and mediation.adapter_absent is None
    assert mediation.heads is None
    pair.merged.hf.save_pretrained(tmp_path / "merged")
    pair.tokenizer.save_pretrained(tmp_path / "merged")
    settings = organism_settings().model_copy(
        update={"adapter": None, "merged": str(tmp_path / "merged")}
    )
    with ModelPair.load(settings) as merged:
        without = mediate(merged, ids, words)
    assert without.adapter is None and "--adapter" in (without.adapter_absent or "")
    assert without.shares.features == pytest.approx(mediation.shares.features, abs=1e-4)
