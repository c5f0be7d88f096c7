"""Rows of matrices off the device are those of the whole matrix, and no more is read for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from em_circuits.models.dictionaries import TranscoderDictionary
from em_circuits.models.stored_rows import FileMatrix, HostMatrix, StoredRows
from pivotal_tokens.errors import WorkFailed

WIDE, WIDTH = 40, 6
AT = {"device": torch.device("cpu"), "dtype": torch.float32}


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16])
def values(request: pytest.FixtureRequest) -> torch.Tensor:
    return torch.randn(WIDE, WIDTH, generator=torch.Generator().manual_seed(0)).to(request.param)


@pytest.fixture
def file(values: torch.Tensor, tmp_path: Path) -> FileMatrix:
    path = tmp_path / "layer_0.safetensors"
    other = torch.arange(7, dtype=torch.float32)
    save_file({"b_enc": other, "W_enc": values, "W_turned": values.T.contiguous()}, path)
    return FileMatrix(path, "W_enc")


@pytest.mark.parametrize("ids", [[3], [0, 1, 2, 39], [7, 2, 7, 30, 31, 2], []])
def test_rows_are_those_of_the_matrix_and_each_is_read_once(
    file: FileMatrix, values: torch.Tensor, ids: list[int]
) -> None:
    store, asked = StoredRows(), torch.tensor(ids, dtype=torch.int64)
    assert torch.equal(store.rows(file, asked, **AT), values[asked].float())
    row = WIDTH * values.element_size()
    assert store.bytes_read == len(set(ids)) * row
    more = torch.tensor([*ids, 5])
    assert torch.equal(store.rows(file, more, **AT), values[more].float())
    assert store.bytes_read == (len({*ids, 5})) * row


def test_host_memory_and_turned_files_give_the_same(file: FileMatrix, values: torch.Tensor) -> None:
    ids, store = torch.tensor([9, 4, 9]), StoredRows()
    host = HostMatrix(("host", "W_enc"), values)
    turned = FileMatrix(file.path, "W_turned", turned=True)
    for matrix in (host, turned):
        assert torch.equal(store.rows(matrix, ids, **AT), values[ids].float())
    assert torch.equal(store.whole(turned), values)


def test_rows_that_were_not_used_for_longest_go_first(
    file: FileMatrix, values: torch.Tensor
) -> None:
    row = WIDTH * values.element_size()
    store = StoredRows(room=5 * row)
    again = HostMatrix(("host", "W_enc"), values)
    three = torch.tensor([1, 2, 3])
    store.rows(file, three, **AT)
    store.rows(again, three, **AT)  # 6 rows: the first three go
    read = store.bytes_read
    store.rows(again, three, **AT)
    assert store.bytes_read == read
    store.rows(file, three, **AT)
    assert store.bytes_read > read
    every = torch.arange(WIDE)  # more than there is room for: none is kept, all are right
    assert torch.equal(store.rows(file, every, **AT), values.float())
    assert sum(kept.rows.nbytes for kept in store._kept.values()) <= store.room


def test_a_file_that_became_shorter_is_named(file: FileMatrix) -> None:
    file.rows(torch.tensor([0]))
    with file.path.open("r+b") as stream:
        stream.truncate(200)
    with pytest.raises(WorkFailed, match=r"layer_0\.safetensors was cut short"):
        file.rows(torch.tensor([39]))


def test_decoding_few_features_reads_their_rows_alone_and_gives_the_same() -> None:
    draw = torch.Generator().manual_seed(1)
    w_dec, b_dec = torch.randn(WIDE, WIDTH, generator=draw), torch.randn(WIDTH, generator=draw)
    asked: list[torch.Tensor | None] = []

    def matrices(name: str, ids: torch.Tensor | None) -> torch.Tensor:
        asked.append(ids)
        return w_dec if ids is None else w_dec[ids]

    dictionary = TranscoderDictionary(0, matrices, torch.zeros(WIDE), b_dec)
    x = torch.zeros(2, 3, WIDTH)
    for firing in ([], [4, 31], list(range(30))):
        activations = torch.zeros(2, 3, WIDE)
        activations[..., firing] = torch.rand(2, 3, len(firing), generator=draw)
        asked.clear()
        expected = activations @ w_dec + b_dec
        assert torch.allclose(dictionary.decode(activations, x), expected, atol=1e-6)
        (read,) = asked
        assert (read is None) == (len(firing) == 30)
        if read is not None:
            assert read.tolist() == firing


@pytest.mark.parametrize("gate", [{}, {"threshold": torch.full((WIDE,), 0.4)}, {"top_k": 3}])
def test_some_features_alone_are_those_of_the_whole_layer(gate: dict) -> None:
    draw = torch.Generator().manual_seed(1)
    weights = {name: torch.randn(WIDE, WIDTH, generator=draw) for name in ("W_enc", "W_dec")}
    read: list[int] = []

    def matrices(name: str, ids: torch.Tensor | None) -> torch.Tensor:
        read.append(WIDE if ids is None else len(ids))
        return weights[name] if ids is None else weights[name][ids]

    whole = TranscoderDictionary(0, matrices, torch.zeros(WIDE), torch.zeros(WIDTH), **gate)
    x, ids = torch.randn(2, 5, WIDTH, generator=draw), torch.tensor([2, 3, 17, 39])
    expected = whole.encode(x)
    assert torch.allclose(whole.encoder(ids).encode(x), expected[..., ids], atol=1e-6)
    some = whole.among(ids)
    if "top_k" in gate:  # whether one fires depends on all the others
        assert some is whole
        return
    read.clear()
    assert torch.allclose(some.encode(x), expected[..., ids], atol=1e-6) and read == [4]
    assert torch.equal(some.decoder(torch.tensor([1, 3])), weights["W_dec"][[3, 39]])
    assert some.ids is not None and some.ids.tolist() == ids.tolist()
    assert whole.among(ids[:0]).encode(x).shape == (2, 5, 1)
