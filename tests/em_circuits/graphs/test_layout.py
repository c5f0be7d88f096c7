"""The node order, spelled out."""

import ast
from pathlib import Path

import pytest
import torch

from em_circuits.graphs.layout import TOKEN_LAYER, NodeKind, NodeLayout
from pivotal_tokens.errors import RequestError

ROOT = Path(__file__).parents[3]
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
    layers = LAYOUT.source_parts(torch.tensor([0, 1, 1]))
    positions = LAYOUT.source_positions(torch.tensor([2, 0, 3]))
    assert layers.tolist() == [0, 1, 1] + [0] * 4 + [1] * 4 + [TOKEN_LAYER] * 4
    assert positions.tolist() == [2, 0, 3] + [0, 1, 2, 3] * 3


def test_rows_are_features_then_logits():
    nodes = torch.arange(LAYOUT.n_nodes)
    rows = LAYOUT.rows_of(nodes)
    assert rows.tolist() == [0, 1, 2] + [-1] * 12 + [3, 4]
    assert LAYOUT.nodes_of(torch.arange(LAYOUT.n_rows)).tolist() == [0, 1, 2, 15, 16]
    assert nodes[LAYOUT.logits].tolist() == LAYOUT.nodes_of(nodes[LAYOUT.logit_rows]).tolist()
    assert nodes[LAYOUT.errors_of(1)].tolist() == [LAYOUT.error_index(1, p) for p in range(4)]
    assert (LAYOUT.position_of(14), LAYOUT.target_of(16)) == (3, 1)
    assert LAYOUT.matrix_rows(17) == (slice(3, 15), slice(15, 17))
    assert LAYOUT.matrix_rows(5) == (slice(3, 3), slice(3, 5))


def test_with_fewer_features_the_other_nodes_close_up():
    left = LAYOUT.nodes_with(torch.tensor([0, 2]))
    assert left.tolist() == [0, 2, *range(3, 17)]
    assert len(left) == LAYOUT.with_features(2).n_nodes


def test_nobody_else_computes_an_offset():
    """Every file but layout.py takes whole slices and lets the layout convert."""
    found = []
    for path in sorted((ROOT / "em_circuits").rglob("*.py")):
        if path.name != "layout.py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            offsets = [node for node in ast.walk(tree) if computes_an_offset(node)]
            found += [f"{path.relative_to(ROOT)}:{node.lineno}" for node in offsets]
    assert found == []


def computes_an_offset(node):
    """`layout.logits.start`, arithmetic, slices or comparisons with a layout's sizes."""
    match node:
        case ast.Attribute(attr="start" | "stop", value=ast.Attribute() as value):
            return value.attr in {"features", "errors", "tokens", "logits", "sources", "inner"}
        case ast.BinOp(left=left, right=right, op=ast.Add() | ast.Sub()):
            return is_size(left) or is_size(right)
        case ast.Compare(left=left, comparators=others):
            index = [n for n in (left, *others) if isinstance(n, ast.Name | ast.Subscript)]
            return any(is_size(n) for n in (left, *others)) and bool(index)
        case ast.Slice(lower=lower, upper=upper):
            return is_size(lower) or is_size(upper)
    return False


def is_size(node):
    match node:
        case ast.Attribute(attr=name, value=ast.Name(id="layout") | ast.Attribute(attr="layout")):
            return name in {"n_features", "n_sources", "n_rows", "n_nodes"}
    return False


@pytest.mark.parametrize(
    "line",
    [
        "x[: layout.tokens.start]",
        "i - graph.layout.logits.start",
        "x[graph.layout.n_features :]",
        "row + layout.n_features",
        "targets < layout.n_features",
        "0 <= source < edges.layout.n_sources",
    ],
)
def test_an_offset_is_recognised(line):
    assert any(computes_an_offset(node) for node in ast.walk(ast.parse(line)))
