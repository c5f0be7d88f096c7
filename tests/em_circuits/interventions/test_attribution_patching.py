"""Sites patched across prompts: by hand, to first order, and as nodes of a graph."""

from __future__ import annotations

import pytest
import torch
from subjects import Subject

from em_circuits.activation_cache import ActivationCache
from em_circuits.graphs.held import full_edges, gradient_effects
from em_circuits.interventions.attribution_patching import SiteKind, SitePatch
from pivotal_tokens.errors import RequestError

KINDS: tuple[SiteKind, ...] = ("mlp", "head")
CHANGED = 4


def other_ids(subject: Subject) -> torch.Tensor:
    """The same prompt with another token at one position."""
    changed = subject.input_ids.clone()
    changed[CHANGED] = changed[CHANGED + 1]
    return changed


@pytest.fixture(params=KINDS)
def patch(request: pytest.FixtureRequest, subject: Subject) -> SitePatch:
    return SitePatch.between(
        subject.model, subject.input_ids, other_ids(subject), subject.groups, kind=request.param
    )


def by_hand(
    subject: Subject, kind: SiteKind, places: list[tuple[int, int, int]]
) -> tuple[float, float]:
    """Contrast undisturbed, and with some sites set to the other prompt's."""
    hf, width = subject.model.hf, subject.model.hf.config.head_dim
    seen: dict[int, torch.Tensor] = {}
    at = {layer: [(p, u) for one, p, u in places if one == layer] for layer, _, _ in places}

    def changed(layer: int, x: torch.Tensor, put: bool) -> torch.Tensor:
        if not put:
            seen[layer] = x.clone()
            return x
        x = x.clone()
        for position, unit in at.get(layer, []):
            columns = slice(None) if kind == "mlp" else slice(unit * width, (unit + 1) * width)
            x[:, position, columns] = seen[layer][:, position, columns]
        return x

    def run(ids: torch.Tensor, put: bool) -> float:
        handles = []
        for i, block in enumerate(hf.model.layers):
            if kind == "mlp":
                handles.append(
                    block.mlp.register_forward_hook(lambda _m, _a, y, i=i: changed(i, y, put))
                )
            else:
                handles.append(
                    block.self_attn.o_proj.register_forward_pre_hook(
                        lambda _m, a, i=i: (changed(i, a[0], put),)
                    )
                )
        with torch.no_grad():
            logits = hf(input_ids=ids[None]).logits[0, -1]
        for handle in handles:
            handle.remove()
        return float(subject.groups.value(logits[None]))

    run(other_ids(subject), False)
    patched = run(subject.input_ids, True)
    return float(subject.groups.value(subject.model.next_logits(subject.input_ids)[None])), patched


def test_a_site_is_what_hooks_by_hand_patch(subject: Subject, patch: SitePatch) -> None:
    layers, positions, units = patch.shape
    for places in (
        [(1, positions - 1, units - 1)],
        [(0, CHANGED, 0), (layers - 1, CHANGED + 2, 0)],
    ):
        chosen = torch.zeros(1, *patch.shape, dtype=torch.bool)
        for place in places:
            chosen[(0, *place)] = True
        before, after = by_hand(subject, patch.kind, places)
        assert float(patch.measured(chosen)) == pytest.approx(before - after, abs=2e-4)


def test_each_site_is_its_own_row_and_what_stands_before_the_change_has_no_effect(
    patch: SitePatch,
) -> None:
    each = patch.each()
    assert not patch.differs[:, :CHANGED].any() and not each[:, :CHANGED].any()
    assert patch.differs[:, CHANGED].all()
    chosen = torch.zeros(3, *patch.shape, dtype=torch.bool)  # the last row patches nothing
    chosen[0, 2, -1, 0] = chosen[1, 0, CHANGED, 0] = True
    found = patch.measured(chosen)
    alone = [float(each[2, -1, 0]), float(each[0, CHANGED, 0])]
    assert found[:2].tolist() == pytest.approx(alone, abs=2e-4)
    assert float(found[2]) == pytest.approx(0, abs=2e-4)


def test_units_are_patched_at_every_position(patch: SitePatch) -> None:
    together = patch.measured(patch.masks([[(2, 0)], [(0, 0), (1, 0)]]))
    assert float(patch.units()[2, 0]) == pytest.approx(float(together[0]), abs=2e-4)
    assert float(together[1]) != pytest.approx(float(patch.units()[:2, 0].sum()), abs=1e-9)


def test_the_gradient_is_the_slope_of_a_small_step(subject: Subject, patch: SitePatch) -> None:
    """The other values moved to a hundredth of the way: measured is a hundredth of first order."""
    step = 0.02
    near = SitePatch(
        patch.model,
        patch.kind,
        patch.sites,
        patch.input_ids,
        patch.weights,
        patch.own,
        patch.own + step * (patch.other - patch.own),
    )
    measured, first = near.each(), patch.gradient()
    scale = float(first.abs().max())
    assert torch.allclose(measured / step, first.double(), atol=0.05 * scale)
    assert (patch.bound() + 1e-6 >= first.abs()).all()


def test_over_full_edges_total_effect_is_the_gradient(subject: Subject, patch: SitePatch) -> None:
    """Whatever other sites are nodes."""
    first = patch.gradient()
    chosen = torch.zeros(patch.shape, dtype=torch.bool)
    chosen.view(-1)[first.abs().flatten().topk(12).indices] = True
    nodes = patch.nodes(chosen)
    weights = patch.weights[None]
    edges = full_edges(patch.model, nodes, patch.input_ids, weights)
    total = edges.total_effect()[0, : len(nodes)]
    scale = float(first.abs().max())
    assert torch.allclose(total, first[chosen].double(), atol=1e-4 * scale)
    live = gradient_effects(patch.model, nodes, patch.input_ids, weights)[0]
    assert torch.allclose(live, first[chosen], atol=1e-4 * scale)
    assert float(edges.values[edges.layout.features].abs().max()) > 0, "sites act on sites"


def test_direct_writes_and_the_token_s_own_sum_to_the_contrast(subject: Subject) -> None:
    heads, mlps = (
        SitePatch.between(
            subject.model, subject.input_ids, other_ids(subject), subject.groups, kind=kind
        )
        for kind in KINDS[::-1]
    )
    hf = subject.model.hf
    token = hf.get_input_embeddings()(subject.input_ids[-1])
    norm = subject.model.decoder.final_norm
    stream = ActivationCache.capture(subject.model, subject.input_ids)
    scale = stream.norm_scales[-1]
    assert scale is not None
    own = hf.get_output_embeddings()(norm.apply(token, scale[-1])) @ heads.weights
    total = float(heads.direct().sum() + mlps.direct().sum() + own)
    value = subject.groups.value(subject.model.next_logits(subject.input_ids)[None])
    assert total == pytest.approx(float(value), abs=1e-3)


def test_prompts_of_two_lengths_are_refused(subject: Subject) -> None:
    with pytest.raises(RequestError, match="needs equally many"):
        SitePatch.between(
            subject.model, subject.input_ids, subject.input_ids[1:], subject.groups, kind="mlp"
        )
