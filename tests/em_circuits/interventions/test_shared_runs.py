"""What rows have in common is run once, and no logit tells."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tiny_families import PROMPT, make_family

from em_circuits.activation_cache import ActivationCache
from em_circuits.interventions import Intervention, Mode, Regime, run, run_rows, set_effects
from em_circuits.interventions.edits import EditBatch
from em_circuits.interventions.feature_rows import FeatureRows
from em_circuits.models import Model, ModelPair, encode
from em_circuits.target import AlongDirection

MODELS = {
    "llama": ("llama-tied", "own", "plt"),
    "llama-jumprelu": ("llama-untied", "jumprelu", "plt"),
    "neurons": ("qwen2", "own", "none"),
    "windows": ("gemma-2-window", "own", "plt"),
    "layers-give-tuples": ("gpt-2", "own", "plt"),
    "experts": ("gpt-oss", "own", "plt"),
    "cross-layer": ("llama-untied", "cross-layer", "plt"),
}


@pytest.fixture(scope="module", params=list(MODELS))
def subject(request, tmp_path_factory) -> Iterator[tuple[Model, ActivationCache]]:
    family, kind, basis = MODELS[request.param]
    made = make_family(tmp_path_factory.mktemp("shared"), family, kind=kind)
    with ModelPair.load(made.settings(basis)) as pair:
        ids = torch.tensor(encode(pair.tokenizer, PROMPT))
        yield pair.merged, ActivationCache.capture(pair.merged, ids)


def rows_of(state: ActivationCache, n_layers: int) -> list[list[Intervention]]:
    """All change the same three features; each but the first one more, late and high up."""

    def ablated(coordinates: torch.Tensor) -> list[Intervention]:
        return [
            Intervention(layer=layer, position=position, feature=node, mode=Mode.ABLATE)
            for layer, position, node in coordinates.tolist()
        ]

    layer, position, _ = state.active.cpu().unbind(1)
    low = state.active[(layer == 0) & (position > 0) & (position < 6)][:2]
    low = torch.cat([low, state.active[(layer == 0) & (position == state.n_pos - 1)][:1]])
    high = state.active[(layer >= n_layers - 2) & (position == state.n_pos - 1)][-5:]
    assert len(low) == 3 and len(high) == 5
    common = ablated(low)
    return [common, *([*common, one] for one in ablated(high))]


@pytest.mark.parametrize("regime", [Regime.FREE, Regime.ATTENTION_FROZEN, Regime.DIRECT])
def test_logits_are_those_of_whole_runs(subject, regime: Regime, monkeypatch) -> None:
    model, state = subject
    rows = rows_of(state, model.sites.n_layers)
    started, start = [], run.started_at
    monkeypatch.setattr(
        run, "started_at", lambda decoder, below: started.append(below) or start(decoder, below)
    )
    shared = run_rows(model, state, rows, regime)
    # What a cross-layer feature of layer 0 writes further up is added where layer 0 is run.
    crosses = model.dictionaries[0].n_writes > 1
    expected = None if crosses or regime.freezes_norms else model.sites.n_layers - 1
    assert [below and below[0] for below in started] == [expected]
    whole = run_rows(model, state, rows, regime, share_prefix=False)
    assert (shared - whole).abs().max() <= 2e-6 * whole.abs().max()
    assert (shared[1:] - shared[0]).abs().amax(1).max() > 0


def test_a_layer_that_is_read_is_run(subject) -> None:
    model, state = subject
    rows = rows_of(state, model.sites.n_layers)
    direction = torch.randn(model.decoder.d_model, generator=torch.Generator().manual_seed(1))
    for layer in (0, model.sites.n_layers - 1, -1):  # -1: the last
        terms = (AlongDirection(direction, layer, -1),)
        together = run.run_values(model, state, rows, terms)
        alone = torch.cat([run.run_values(model, state, [row], terms) for row in rows])
        assert (together - alone).abs().max() <= 1e-5 * alone.abs().max()


def test_effects_beside_others_are_what_a_set_adds(subject) -> None:
    model, state = subject
    rows = rows_of(state, model.sites.n_layers)
    held = torch.tensor([[i.layer, i.position, i.feature] for i in rows[0]])
    own = torch.tensor([[r[-1].layer, r[-1].position, r[-1].feature] for r in rows[1:]])
    own = torch.cat([own, state.active.cpu()[:: max(1, len(state.active) // 40)]])
    own = own[~(own[:, None] == held).all(2).any(1)].unique(dim=0)
    targets = torch.tensor([3, 7])
    beside = set_effects(model, state, own[:, None], targets=targets, beside=held)
    both = torch.stack([torch.cat([one[None], held]) for one in own])
    whole = set_effects(model, state, both, targets=targets)
    alone = set_effects(model, state, held[None], targets=targets)
    assert (beside - (whole - alone)).abs().max() <= 2e-5 * whole.abs().max().clamp_min(1)


def test_what_every_row_does_is_found_whatever_its_order() -> None:
    lines = {0: [(1, 2, 3), (0, 4, 5)], 1: [(0, 4, 5), (2, 2, 2), (1, 2, 3)], 2: [(0, 4, 5)]}
    row = torch.tensor([i for i, places in lines.items() for _ in places])
    places = torch.tensor([place for each in lines.values() for place in each])
    edits = EditBatch.setting(3, row, places, torch.zeros(len(row)))
    assert edits.in_every_row().tolist() == [False, True, True, False, False, True]
    other = EditBatch.setting(3, row, places, torch.tensor([0.0, 0, 0, 0, 0, 1]))
    assert not other.in_every_row().any()
    assert not edits.rows(0, 1).in_every_row().any()


def test_places_with_many_and_with_few_nodes_are_computed_alike(subject) -> None:
    """Where most nodes are asked for they are computed together, elsewhere one by one."""
    model, state = subject
    dictionary, x = model.dictionaries[1], state.inputs[1]
    rows = FeatureRows.read(dictionary, torch.arange(32))
    place = torch.cat([torch.full((32,), 3), torch.tensor([5, 7, 5])])
    which = torch.cat([torch.arange(32), torch.tensor([2, 20, 31])])
    assert rows._crowded(place, len(x)).nonzero()[:, 0].tolist() == [3]
    found = rows.activations(x, place, which)
    expected = dictionary.encode(x)[place, which]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    amounts = torch.randn(len(place), generator=torch.Generator().manual_seed(2))
    written = rows.written(amounts, which, place=place, n_places=len(x))
    by_hand = torch.zeros_like(written).index_add_(0, place, amounts[:, None] * rows.decoder[which])
    assert (written - by_hand).abs().max() <= 1e-5 * by_hand.abs().max()
