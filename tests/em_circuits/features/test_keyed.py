"""The same feature in another prompt, and its three states."""

from __future__ import annotations

import pytest
import torch
from few_features import block, prompt
from synthetic import Size, synthetic_graph

from em_circuits.features import KeyedScores, block_of, of_graph
from em_circuits.features.keyed import decode, encode
from pivotal_tokens.errors import RequestError


def test_codes_are_sortable_and_come_back() -> None:
    places = torch.tensor([[0, 3, 7], [1, 2, 131071], [31, 4095, (1 << 32) - 1]])
    assert decode(encode(places, 5000)).tolist() == [
        [0, 7, 3 - 4999],
        [1, 131071, 2 - 4999],
        [31, (1 << 32) - 1, 4095 - 4999],
    ]
    assert decode(encode(places, None))[:, 2].tolist() == [0, 0, 0]


def test_a_key_is_a_layer_and_an_id_wherever_it_stands_in_a_prompt() -> None:
    """B25: subset index 0 is feature 7 here and feature 3 there."""
    keyed = KeyedScores.of([block((1, 4, 7, 1.0), (1, 5, 7, 2.0)), block((0, 2, 3, -1.0))])
    assert keyed.coordinates.tolist() == [[0, 3, 0], [1, 7, 0]]
    assert [keyed.values(b).tolist() for b in keyed.blocks] == [[0.0, 3.0], [-1.0, 0.0]]
    assert keyed.rows(torch.tensor([1])).tolist() == [[3.0], [0.0], [0.0], [0.0]]


def test_by_position_counts_from_the_end_and_a_short_prompt_has_no_far_positions() -> None:
    blocks = [
        block((1, 9, 7, 1.0), (1, 2, 7, 5.0), n_pos=10, by_position=True),
        block((1, 4, 7, 2.0), n_pos=5, by_position=True),
    ]
    keyed = KeyedScores.of(blocks, by_position=True)
    assert keyed.coordinates.tolist() == [[1, 7, 0], [1, 7, -7]]
    assert [keyed.known(b).tolist() for b in blocks] == [[True, True], [True, False]]
    assert [keyed.values(b).tolist() for b in blocks] == [[1.0, 5.0], [2.0, 0.0]]


def test_not_selected_is_unknown_and_partly_selected_says_so() -> None:
    blocks = [
        block((1, 4, 7, 1.0), unscored=((1, 5, 7), (0, 5, 3))),
        block((0, 2, 3, -1.0), (1, 2, 7, 1.0)),
    ]
    keyed = KeyedScores.of(blocks)
    assert keyed.known(blocks[0]).tolist() == [False, True]
    assert keyed.known(blocks[1]).tolist() == [True, True]
    assert [b.partial.tolist() for b in blocks] == [[True], [False, False]]


def test_one_side_alone_is_no_contrast() -> None:
    alone = prompt((0, 1, 1, 1.0))
    with pytest.raises(RequestError, match="no contrast: 1 evil and 0 safe"):
        block_of(type(alone)(alone.scores, {10: "evil"}, alone.n_pos, alone.unscored))


def test_a_truncated_graph_says_which_features_have_no_score() -> None:
    graph = synthetic_graph(Size(n_features=20, n_unselected=15))
    labels = {3: "evil", 10: "safe"}
    assert len(of_graph(graph, labels, "gradient").unscored) == 0
    direct = of_graph(graph, labels, "direct")
    assert len(direct.unscored) == 15
    both = torch.cat([direct.unscored, direct.scores.coordinates]).tolist()
    assert sorted(both) == graph.active.tolist()
