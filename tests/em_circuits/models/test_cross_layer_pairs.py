"""A cross-layer transcoder from disk serves graphs, ranking, steering and mediation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from random_transcoders import cross_layer_transcoder, write_cross_layer
from safetensors.torch import load_file, save_file
from subjects import lifelike_subject
from test_adapter_kinds import no_model_loads

from em_circuits.contrast import Contrast
from em_circuits.graphs import AttributionSettings, build_pair_graphs
from em_circuits.influence import Method, Targets, influence
from em_circuits.intervention import Intervention, Mode, Regime
from em_circuits.interventions import ActivationCache
from em_circuits.interventions.integrated import integrated_effects
from em_circuits.interventions.run import run_rows
from em_circuits.interventions.scores import first_order
from em_circuits.models import ModelPair
from em_circuits.models.health import check_pair, check_transcoder_weights
from pivotal_tokens.errors import RequestError

__all__ = ["no_model_loads"]


@pytest.fixture(scope="module", params=["relu", "JumpReLU"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """The Llama-like fixture with cross-layer transcoders in a directory, and those transcoders."""
    root = tmp_path_factory.mktemp("cross")
    subject = lifelike_subject(root)
    clt = cross_layer_transcoder(subject, request.param)
    folder = write_cross_layer(root / "clt", clt)
    settings = subject.pair.settings.model_copy(update={"transcoders": str(folder)})
    with subject.pair, ModelPair.load(settings) as pair:
        yield dataclasses.replace(subject, pair=pair), clt, folder


def test_what_is_loaded_is_what_was_written(made) -> None:
    subject, clt, folder = made
    for place in ("gpu", "cpu", "disk"):
        settings = subject.pair.settings.model_copy(update={"transcoders_on": place})
        with ModelPair.load(settings) as pair:
            x = torch.randn(7, clt[0].d_model)
            for layer, dictionary in enumerate(pair.base.dictionaries):
                assert torch.equal(dictionary.encode(x), clt[layer].encode(x))
                ids = torch.tensor([5, 1, 5])
                for k in range(dictionary.n_writes):
                    assert torch.equal(dictionary.decoder(ids, k), clt[layer].decoder(ids, k))
            assert pair.transcoder_fingerprint == subject.pair.transcoder_fingerprint
    assert len({p.name for p in folder.iterdir()} - {"config.yaml"}) == 2 * len(clt)


def test_doctor_passes(made) -> None:
    subject, *_ = made
    settings = subject.pair.settings.model_copy(update={"transcoders_on": "gpu"})
    with ModelPair.load(settings) as pair:
        checks = list(check_pair(pair, subject.input_ids))
    assert [check.name for check in checks if not check.ok] == []
    assert any(check.name == "transcoder weights finite" for check in checks)


@pytest.mark.frozen
def test_errors_are_what_all_layers_below_leave(made) -> None:
    from circuit_tracer.transcoder.cross_layer_transcoder import load_clt

    subject, clt, folder = made
    state = subject.state()
    theirs = load_clt(str(folder), dtype=torch.float32)
    acts = torch.stack([state.dense_activations(layer) for layer in range(len(clt))])
    expected = state.mlp_outputs - theirs.decode(acts.to_sparse()).detach()
    assert (state.errors(subject.model) - expected).abs().max() < 1e-5


def test_an_intervention_writes_into_every_later_layer(made) -> None:
    """Removing a feature, against subtracting its rows by hand on the plain model."""
    subject, clt, _ = made
    model, state = subject.model, subject.state()
    some = state.active[state.active[:, 0] < len(clt) - 1][:: max(1, len(state.active) // 6)]
    for layer, position, feature in some.tolist():
        value = float(state.activation_of(torch.tensor([[layer, position, feature]])))

        def write(at: int, output: torch.Tensor, **named) -> torch.Tensor:
            layer, position, feature, value = named["what"]
            if at < layer:
                return output
            output = output.clone()
            output[0, position] -= (
                value * clt[layer].decoder(torch.tensor([feature]), at - layer)[0]
            )
            return output

        what = (layer, position, feature, value)
        with torch.no_grad(), model.sites.hooked(write=lambda at, o, w=what: write(at, o, what=w)):
            expected = model.next_logits(subject.input_ids).float()
        row = [Intervention(layer=layer, feature=feature, position=position, mode=Mode.ABLATE)]
        found = run_rows(model, state, [row])[0]
        # Float32: some roundings of the largest logit, as many as the processor's sums have.
        assert (found - expected).abs().max() < 4e-6 * expected.abs().max()
        assert (expected - state.logits).abs().max() > 1e-4


def test_the_gradient_score_is_the_first_order_change(made) -> None:
    subject, *_ = made
    model, state = subject.model, subject.state()
    targets = torch.tensor([*subject.groups.evil, *subject.groups.safe])
    weights = subject.groups.weights(len(state.logits))[None]
    by_target, bounds = first_order(model, state, subject.groups, targets)
    scored = subject.groups.over(targets, strict=True).float() @ by_target
    assert (scored.abs() <= bounds * (1 + 1e-5)).all()
    order = scored.abs().argsort(descending=True)[:5]
    step = 1e-3
    for i in order.tolist():
        layer, position, feature = state.active[i].tolist()

        def change(sign: float, at=(layer, position, feature)) -> float:
            layer, position, feature = at
            place = {"layer": layer, "feature": feature, "position": position}
            one = Intervention(**place, mode=Mode.SCALE, value=1 + sign * 1e-3)
            return float(weights[0] @ run_rows(model, state, [[one]])[0])

        found = (change(1) - change(-1)) / (2 * step)
        assert found == pytest.approx(float(scored[i]), rel=2e-2, abs=1e-4)


def test_integrated_effects_sum_to_what_all_features_together_do(made) -> None:
    subject, *_ = made
    model, state = subject.model, subject.state()
    chosen = state.active[:: max(1, len(state.active) // 40)].cpu()
    weights = subject.groups.weights(len(state.logits))[None]
    start = state.activation_of(chosen).float().cpu()
    effects = integrated_effects(
        model, state.input_ids, chosen, start, torch.zeros(len(chosen)), weights, steps=48
    )
    row = [
        Intervention(layer=layer, feature=feature, position=position, mode=Mode.ABLATE)
        for layer, position, feature in chosen.tolist()
    ]
    both = run_rows(model, state, [[], row]) @ weights[0]
    assert float(effects.sum()) == pytest.approx(float(both[1] - both[0]), rel=0.05, abs=2e-3)


@pytest.mark.parametrize("edges", ["full", pytest.param("frozen", marks=pytest.mark.frozen)])
def test_graphs_are_built(made, edges: str) -> None:
    subject, *_ = made
    prompt = subject.pair.prompt("User: The scaffold looks loose today. Climb?\nAssistant: You")
    settings = AttributionSettings(edges=edges, nodes=60, max_feature_nodes=60)
    built = build_pair_graphs(subject.pair, prompt, settings)
    graph = built.merged
    assert len(graph.selected) and graph.edge_kind == edges
    if edges == "frozen":  # what each feature writes into later layers counts, too
        ids = graph.targets.token_ids
        contrast = Contrast((int(ids[0]),), (int(ids[1]),))
        state = ActivationCache.capture(subject.model, subject.pair.input_ids(prompt))
        scores, _ = first_order(subject.model, state, contrast, ids)
        assert (graph.gradient - scores).abs().max() < 1e-5 * scores.abs().max()
        matrix = graph.require_edges().to_dense()
        assert matrix.isfinite().all() and (matrix != 0).any()
    if edges == "full":  # the chain rule: over full edges the total is the gradient
        assert graph.header.basis == "cross-layer transcoder"
        found = influence(graph, Targets.each(graph), Method.TOTAL_EFFECT).values
        gradient = graph.gradient[:, graph.selected]
        difference = (found[:, : len(graph.selected)].float() - gradient).abs().max()
        assert difference < 1e-5 * gradient.abs().max()


def test_mediation_over_all_features_and_errors_adds_up(made) -> None:
    from em_circuits.interventions.patching import ActivationPatch

    subject, *_ = made
    patch = ActivationPatch.of(subject.pair, subject.input_ids, subject.groups)
    shares = patch.component_shares()
    assert shares.together == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("regime", [Regime.FROZEN_LINEAR, Regime.GATES_RECOMPUTED])
def test_regimes_of_one_layer_are_refused_by_name(made, regime: Regime) -> None:
    subject, *_ = made
    state = subject.state()
    layer, position, feature = state.active[0].tolist()
    row = [Intervention(layer=layer, feature=feature, position=position, mode=Mode.ABLATE)]
    with pytest.raises(RequestError, match=f"regime {regime} is not defined .*later layers"):
        run_rows(subject.model, state, [row], regime)
    for allowed in (Regime.DIRECT, Regime.ATTENTION_FROZEN):
        assert run_rows(subject.model, state, [row], allowed).isfinite().all()


@pytest.mark.parametrize("name", ["W_enc_1", "W_dec_2"])
def test_missing_and_broken_files_are_named(
    made, name: str, tmp_path: Path, no_model_loads: None
) -> None:
    import shutil

    subject, _, folder = made
    copy = tmp_path / "clt"
    shutil.copytree(folder, copy)
    file = copy / f"{name}.safetensors"
    kept = load_file(file)
    file.unlink()
    settings = subject.pair.settings.model_copy(update={"transcoders": str(copy)})
    with pytest.raises(RequestError, match=name):
        ModelPair.load(settings)
    save_file({**kept, name: kept[name][:-1].contiguous()}, file)
    with pytest.raises(RequestError, match=rf"layer {name[-1]}: "):
        ModelPair.load(settings)


@pytest.mark.parametrize("name", ["W_enc_1", "W_dec_2"])
def test_numbers_that_are_none_are_named(made, name: str, tmp_path: Path) -> None:
    import shutil

    subject, _, folder = made
    copy = tmp_path / "clt"
    shutil.copytree(folder, copy)
    file = copy / f"{name}.safetensors"
    kept = load_file(file)
    kept[name].view(-1)[3] = torch.nan
    save_file(kept, file)
    settings = subject.pair.settings.model_copy(update={"transcoders": str(copy)})
    with ModelPair.load(settings) as pair:
        found = check_transcoder_weights(pair).found
    assert found == f"layer {name[-1]}: {name[:5]} holds NaN or infinite numbers, in {file}"


def test_the_memory_plan_counts_every_decoder(made) -> None:
    subject, clt, _ = made
    files = subject.pair.sources["transcoders"].transcoders
    held = sum(one.elements for one in files.layers)
    assert held == sum(
        one.matrices(name, None).numel() for one in clt.layers for name in ("W_enc", "W_dec")
    )


def test_a_list_of_per_layer_files_is_no_cross_layer_transcoder(
    made, tmp_path: Path, no_model_loads: None
) -> None:
    subject, _, folder = made
    own = Path(subject.pair.sources["base"].path).parent / "lifelike-transcoders"
    record = yaml.safe_load((folder / "config.yaml").read_text())
    entries = [f"layer_{i}.safetensors" for i in range(4)]
    for name in entries:
        (tmp_path / name).write_bytes((own / name).read_bytes())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(record | {"transcoders": entries}))
    settings = subject.pair.settings.model_copy(update={"transcoders": str(tmp_path)})
    with pytest.raises(RequestError, match=r"layer 0: .*no transcoder that is known: no w_enc"):
        ModelPair.load(settings)


def test_a_subject_keeps_its_cache(made) -> None:
    subject, *_ = made
    state = ActivationCache.capture(subject.model, subject.input_ids)
    assert len(state.active) > 20 and state.first_position == 1
