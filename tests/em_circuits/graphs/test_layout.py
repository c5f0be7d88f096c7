"""The node order, spelled out."""

import pytest
import torch

from em_circuits.graphs.layout import TOKEN_LAYER, NodeKind, NodeLayout
from pivotal_tokens.errors import RequestError

LAYOUT = NodeLayout(n_features=3, n_layers=2, n_pos=4, n_logits=2)


def test_nodes_stand_in_the_documented_order():
    kinds = [LAYOUT.kind(i) for i in range(LAYOUT.n_nodes)]
    assert kinds == (
        [NodeKind.FEATURE] * 3 + [NodeKind.ERROR] * 8 + [NodeKind.TOKEN] * 4 + [NodeKind.LOGIT] * 2
    )


def test_slices_cover_every_node_once():
    parts = [LAYOUT.features, LAYOUT.errors, LAYOUT.tokens, LAYOUT.logits]
    covered = [i for part in parts for i in range(part.start, part.stop)]
    assert covered == list(range(LAYOUT.n_nodes))
    assert LAYOUT.sources == slice(0, LAYOUT.logits.start)
    assert LAYOUT.n_sources == 15
    assert LAYOUT.n_rows == 5


def test_errors_are_layer_major():
    assert LAYOUT.error_index(0, 0) == 3
    assert LAYOUT.error_index(1, 2) == 3 + 4 + 2
    assert LAYOUT.error_coordinates(9) == (1, 2)


def test_tokens_and_logits_are_found_by_position_and_number():
    assert LAYOUT.token_index(3) == 14
    assert LAYOUT.logit_index(1) == 16


@pytest.mark.parametrize(
    "call",
    [
        lambda: LAYOUT.error_index(2, 0),
        lambda: LAYOUT.error_index(0, 4),
        lambda: LAYOUT.token_index(-1),
        lambda: LAYOUT.logit_index(2),
        lambda: LAYOUT.kind(17),
        lambda: LAYOUT.error_coordinates(0),
        lambda: NodeLayout(-1, 1, 1, 1),
    ],
)
def test_an_index_outside_is_an_error_and_never_wraps_around(call):
    with pytest.raises(RequestError):
        call()


def test_every_source_has_a_layer_and_a_position():
    layers = LAYOUT.source_layers(torch.tensor([0, 1, 1]))
    positions = LAYOUT.source_positions(torch.tensor([2, 0, 3]))
    assert layers.tolist() == [0, 1, 1] + [0] * 4 + [1] * 4 + [TOKEN_LAYER] * 4
    assert positions.tolist() == [2, 0, 3] + [0, 1, 2, 3] * 3
