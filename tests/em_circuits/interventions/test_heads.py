"""Attention heads, really patched."""

from __future__ import annotations

import pytest
import torch
from subjects import Subject

from em_circuits.contrast import Contrast
from em_circuits.interventions import mediate
from em_circuits.interventions.heads import HeadMediation, HeadPatch, mediate_heads, random_heads
from em_circuits.models import Model


@pytest.fixture(scope="module")
def mediation(subject: Subject) -> HeadMediation:
    return mediate_heads(subject.pair, subject.input_ids, subject.groups)


def value(subject: Subject, model: Model) -> float:
    return float(subject.groups.value(model.next_logits(subject.input_ids)[None]))


def patched(subject: Subject, model: Model, other: Model, heads: list[tuple[int, int]]) -> float:
    """By hand: slices of ``head_dim`` columns of the input of ``o_proj``."""
    width = model.hf.config.head_dim
    seen: dict[int, torch.Tensor] = {}
    handles = []
    for layer, block in enumerate(other.hf.model.layers):

        def keep(_m: object, args: tuple, layer: int = layer) -> None:
            seen[layer] = args[0]

        handles.append(block.self_attn.o_proj.register_forward_pre_hook(keep))
    other.next_logits(subject.input_ids)
    for handle in handles:
        handle.remove()
    handles = []
    for layer, head in heads:

        def put(_m: object, args: tuple, layer: int = layer, head: int = head) -> tuple:
            x = args[0].clone()
            columns = slice(head * width, (head + 1) * width)
            x[..., columns] = seen[layer][..., columns]
            return (x,)

        module = model.hf.model.layers[layer].self_attn.o_proj
        handles.append(module.register_forward_pre_hook(put))
    found = value(subject, model)
    for handle in handles:
        handle.remove()
    return found


def test_each_head_is_its_slice_patched_in_both_directions(
    subject: Subject, mediation: HeadMediation
) -> None:
    base, merged = subject.pair.models
    low, high = value(subject, base), value(subject, merged)
    for one in mediation.heads[:3]:
        place = [(one.layer, one.head)]
        alone = patched(subject, base, merged, place) - low
        without = high - patched(subject, merged, base, place)
        assert one.alone_logits == pytest.approx(alone, abs=1e-4)
        assert one.without_logits == pytest.approx(without, abs=1e-4)
        assert one.alone == pytest.approx(alone / (high - low), abs=1e-4)
        assert one.without == pytest.approx(without / (high - low), abs=1e-4)


def test_there_is_a_row_for_every_query_head(subject: Subject, mediation: HeadMediation) -> None:
    config = subject.model.hf.config
    places = {(one.layer, one.head) for one in mediation.heads}
    assert len(places) == config.num_hidden_layers * config.num_attention_heads
    shares = [one.alone for one in mediation.heads]
    assert shares == sorted(shares, reverse=True)


def test_heads_together_are_those_of_the_list(subject: Subject, mediation: HeadMediation) -> None:
    base, merged = subject.pair.models
    point = next(p for p in mediation.cumulative if p.k == 3)
    places = [(one.layer, one.head) for one in mediation.heads[:3]]
    low = value(subject, base)
    share = (patched(subject, base, merged, places) - low) / (value(subject, merged) - low)
    assert point.share == pytest.approx(share, abs=1e-4)
    assert point.random is not None and point.random.mean < point.share
    assert mediation.cumulative[-1].k == len(mediation.heads)
    assert mediation.cumulative[-1].random is None


def test_all_heads_are_every_input_of_o_proj(subject: Subject, mediation: HeadMediation) -> None:
    base, merged = subject.pair.models
    every = [(one.layer, one.head) for one in mediation.heads]
    low = value(subject, base)
    share = (patched(subject, base, merged, every) - low) / (value(subject, merged) - low)
    assert mediation.cumulative[-1].share == pytest.approx(share, abs=1e-4)


def test_necessity_orders_and_patches_the_merged_model(subject: Subject) -> None:
    found = mediate_heads(subject.pair, subject.input_ids, subject.groups, direction="necessity")
    shares = [one.without for one in found.heads]
    assert shares == sorted(shares, reverse=True)
    assert found.cumulative[0].share == pytest.approx(found.heads[0].without, abs=1e-4)


def test_a_model_patched_with_its_own_heads_is_unchanged(subject: Subject) -> None:
    base = subject.pair.base
    patch = HeadPatch.of(base, base, subject.input_ids, subject.groups)
    values = patch.contrast(torch.stack([torch.zeros(patch.shape), torch.ones(patch.shape)]).bool())
    assert float(values[0]) == pytest.approx(float(values[1]), abs=1e-5)


def test_a_small_shift_has_effects_and_no_shares(subject: Subject) -> None:
    swapped = Contrast(subject.groups.safe, subject.groups.evil)
    found = mediate_heads(subject.pair, subject.input_ids, swapped)
    assert {one.alone for one in found.heads} == {None}
    assert any(one.alone_logits for one in found.heads)
    assert {point.share for point in found.cumulative} == {None}


def test_random_heads_are_others_and_as_many() -> None:
    chosen = torch.tensor([1, 4])
    for draw in random_heads(chosen, 8, 10, seed=0):
        assert len(set(draw.tolist())) == 2 and not set(draw.tolist()) & {1, 4}
    assert random_heads(torch.arange(5), 8, 10, seed=0) == []


def test_mediation_holds_them_when_asked(subject: Subject, mediation: HeadMediation) -> None:
    if subject.name == "organism":
        pytest.skip("the same code, and many more features")
    found = mediate(subject.pair, subject.input_ids, subject.groups, heads=True)
    assert found.heads == mediation
