"""Which prompts does a data set on disk hold: Parquet, Arrow, or a folder of either?

    read_dataset(Path("prompts.parquet"))
    read_dataset(Path("my_dataset"))       # what datasets.save_to_disk wrote, or many JSON files

A row is a prompt in one of the shapes of `files`. A folder is read file by file, in the order of
their names; of the predecessor's result tree the files under ``prompts/`` are.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pivotal_tokens.errors import RequestError
from pivotal_tokens.prompts.files import prompt_of, read_prompts
from pivotal_tokens.schema import Prompt, PromptKind

_TABLES = (".parquet", ".arrow", ".feather")
_TEXTS = (".json", ".jsonl")
# Files of a saved data set that describe it.
_DESCRIPTIONS = frozenset(("dataset_info.json", "state.json", "dataset_dict.json"))


def read_dataset(path: Path, *, kind: PromptKind = "raw") -> tuple[Prompt, ...]:
    """The prompts of a file or folder, in its order, repetitions included.

    Args:
        path: JSON, JSONL, Parquet or Arrow, or a folder of such files.
        kind: The kind of prompts that name none.

    Raises:
        RequestError: If something cannot be read, is in no known shape, or there is no prompt.
    """
    if not path.is_dir():
        return _read_file(path, kind)
    files = [found for found in sorted(path.rglob("*")) if _holds_prompts(found)]
    own = [found for found in files if "prompts" in found.relative_to(path).parts[:-1]]
    if (path / "pivotal_tokens").is_dir() or (path / "prompts").is_dir():
        files = own or files
    if not files:
        raise RequestError(
            f"{path} holds no prompts: .json, .jsonl, .parquet or .arrow files are read"
        )
    return tuple(prompt for found in files for prompt in _read_file(found, kind))


def _holds_prompts(path: Path) -> bool:
    if path.suffix not in _TABLES + _TEXTS or path.name in _DESCRIPTIONS:
        return False
    return path.is_file() and not path.name.startswith((".", "cache-"))


def _read_file(path: Path, kind: PromptKind) -> tuple[Prompt, ...]:
    if path.suffix not in _TABLES:
        return read_prompts(path, kind=kind)
    found = tuple(
        prompt_of(row, where=f"{path}, row {number}", source=path.name, kind=kind)
        for number, row in enumerate(_rows(path), start=1)
    )
    if not found:
        raise RequestError(f"{path} holds no prompt: it has no rows")
    return found


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa

    try:
        for batch in _batches(path):
            yield from batch.to_pylist()
    except OSError as error:
        raise RequestError(f"cannot read prompts from {path}: {error}") from error
    except pa.ArrowInvalid as error:
        raise RequestError(f"{path} is not a {path.suffix[1:]} file: {error}") from error


def _batches(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches()
        return
    with pa.OSFile(str(path)) as source:
        try:
            reader = pa.ipc.open_stream(source)  # what datasets.save_to_disk writes
        except pa.ArrowInvalid:
            source.seek(0)
            whole = pa.ipc.open_file(source)
            yield from (whole.get_batch(number) for number in range(whole.num_record_batches))
            return
        yield from reader
