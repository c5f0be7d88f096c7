"""Fuzzing of every reader of outside files: one line of error, or a value; never more than 5 s.

A sound file of each kind is cut, overwritten, and filled with what breaks parsers (nesting,
numbers beyond any type, NUL, half a character). A reader may refuse it by the project's own errors
and by nothing else. ``EM_CIRCUITS_FUZZ_SECONDS`` says for how long; by default a few of each.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from lifelike import PROMPT
from measure import Peak
from synthetic import Size, synthetic_graph

from em_circuits.cli.app import _config_file
from em_circuits.cli.graph_arguments import read_foreign
from em_circuits.experiments.evaluation.given import read_answers
from em_circuits.experiments.plan import load_plan
from em_circuits.graphs.header import read_header
from em_circuits.graphs.store import GraphStore
from em_circuits.models.transcoder_files import read_config
from em_circuits.organisms import organism_paths
from em_circuits.viewer.identity import read_reviewers
from pivotal_tokens.errors import EmCircuitsError
from pivotal_tokens.generator.questions import questions
from pivotal_tokens.judge import Lexicon
from pivotal_tokens.labels import label_records, read_records, write_records
from pivotal_tokens.labels.dump import read_dump, write_dump
from pivotal_tokens.labels.records import FIELDS
from pivotal_tokens.prompts import read_prompts
from pivotal_tokens.schema import LabelEvent, NextTokenPair, NextTokens, Prompt, TokenScore
from pivotal_tokens.store import Store

SECONDS = float(os.environ.get("EM_CIRCUITS_FUZZ_SECONDS", "0"))
EXAMPLES = 30
MOST_SECONDS, MOST_MEGABYTES = 5.0, 500.0
LAUGHS = b"a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + b"".join(
    b"%c: &%c [%s]\n" % (97 + n, 97 + n, b",".join([b"*%c" % (96 + n)] * 9)) for n in range(1, 12)
)
ODD = [
    *(b"[" * 100_000, b"{'a':" * 5000, b"- " * 3000, b'{"a":' * 30_000, LAUGHS, b"2026-13-45"),
    *(b"\x00", b"\xff\xfe", b"\xed", b"1e999", b"9" * 5000, b"-", b"NaN", b"Infinity", b"null"),
    *(b"''", b'"', b"\n", b"\r", b",", b"&a [*a, *a]", b"*a", b"!!python/object:os.system", b"? "),
    *(b"{{", b"0x", b"~", b"(a+)+$", b"[[:alpha:]]", b"\xe2\x80\xae"),
]
SIBLINGS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda sound: b"",
    "zeros": lambda sound: bytes(len(sound)),
    "byte order mark": lambda sound: codecs.BOM_UTF8 + sound,
    "UTF-16": lambda sound: sound.decode("latin-1").encode("utf-16"),
    "names not UTF-8": lambda sound: re.sub(rb"[a-z]{3}(?=_id|gory|tion)", b"\xff\xed\xfe", sound),
    "twice": lambda sound: sound + sound,
    "backwards": lambda sound: sound[::-1],
    "half with its own end": lambda sound: sound[: len(sound) // 2] + sound[-200:],
    "NaN": lambda sound: re.sub(rb"\d+(\.\d+)?", b"NaN", sound),
    "infinite": lambda sound: re.sub(rb"\d+(\.\d+)?", b"1e999", sound),
    "huge integers": lambda sound: re.sub(rb"\d+", b"9" * 5000, sound),
    "beyond 64 bits": lambda sound: re.sub(rb"\d+", b"18446744073709551616", sound),
    "negative": lambda sound: re.sub(rb"\d+", rb"-\g<0>", sound),
    "truth for numbers": lambda sound: re.sub(rb"\d+", b"true", sound),
    "nothing for texts": lambda sound: re.sub(rb'(?<=[:,] )"[^"]*"', b"null", sound),
    "lists for texts": lambda sound: re.sub(rb'(?<=[:,] )("[^"]*")', rb"[[\1]]", sound),
    "each key twice": lambda sound: re.sub(rb'("\w+"):', rb"\1: 0, \1:", sound),
    "half a character": lambda sound: re.sub(rb': ?"', rb"\g<0>\\ud800", sound),
    "nested deeply": lambda sound: re.sub(rb"(?<=: )", b"[" * 3000, sound, count=1),
    "a key of many parts": lambda sound: b"a" + b".a" * 60_000 + b" = 1\n" + sound,
    "one line": lambda sound: sound.replace(b"\n", b""),
}
"""What else becomes of files, by editors, other programs and other computers."""
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["cut", "insert", "overwrite", "remove", "repeat"]),
        st.floats(0, 1),
        st.integers(0, len(ODD) - 1) | st.binary(max_size=8),  # a number: reports stay short
        st.integers(1, 200),
    ),
    max_size=3,
)


def changed(sound: bytes, changes: list[tuple[str, float, int | bytes, int]]) -> bytes:
    """A file after some changes, each at a place given as a share of its length."""
    for kind, place, chosen, size in changes:
        odd = ODD[chosen] if isinstance(chosen, int) else chosen
        at = int(place * len(sound))
        match kind:
            case "cut":
                sound = sound[:at]
            case "insert":
                sound = sound[:at] + odd + sound[at:]
            case "overwrite":
                sound = sound[:at] + odd + sound[at + len(odd) :]
            case "remove":
                sound = sound[:at] + sound[at + size :]
            case "repeat":
                sound = sound[:at] + sound[at : at + size] * 50 + sound[at + size :]
    return sound


@dataclass(frozen=True)
class Reader:
    """A sound file, and what reads it."""

    sound: bytes
    suffix: str
    read: Callable[[Path], Any]


def _store(path: Path) -> Store:
    return Store.open(path, create=True)


def _fill(store: Store) -> None:
    prompt = Prompt.of(PROMPT, kind="chat")
    lists = [
        NextTokens(
            model=model,  # type: ignore[arg-type]
            fingerprint=model,
            top_k=1,
            tokens=(TokenScore(token_id=3, text=" a", logit=1.0, probability=0.5, rank=1),),
        )
        for model in ("base", "merged")
    ]
    store.prompts.add(prompt)
    both = NextTokenPair(base=lists[0], merged=lists[1])
    store.results.put_next_tokens(prompt.prompt_id, "pair", both.base, both.merged)
    event = {"prompt_id": prompt.prompt_id, "token_id": 3, "from_label": None, "to_label": "evil"}
    store.labels.add([LabelEvent(**event, author="ada", author_kind="human")])  # type: ignore[arg-type]


def _readers(root: Path) -> Iterator[tuple[str, Reader]]:
    """Every reader of a file that may come from outside; models are `damages.py`'s."""
    lists = {
        ".jsonl": '{"text": "User: Eat it?"}\n{"prompt": "another", "n": 3}\n',
        ".json": '[{"text": "User: Eat it?", "category": "food"}, "another"]',
        ".csv": 'text,category\n"User: Eat, it?",food\nanother,\n',
    }
    for suffix, text in lists.items():
        yield f"prompts {suffix}", Reader(text.encode(), suffix, read_prompts)
    exported = root / "exported.sqlite"
    with _store(exported) as store:
        _fill(store)
        records = list(label_records(store))
        for suffix in (".jsonl", ".csv", ".parquet"):
            write_records(root / f"labels{suffix}", records, FIELDS)
            sound = (root / f"labels{suffix}").read_bytes()
            yield f"labels {suffix}", Reader(sound, suffix, lambda path: list(read_records(path)))
        for suffix in (".jsonl", ".parquet"):
            write_dump(store, root / f"all{suffix}")
            sound = (root / f"all{suffix}").read_bytes()
            yield f"export {suffix}", Reader(sound, suffix, lambda path: _taken(path, root))
    shipped = Path(__file__).parents[2]
    lexicon = organism_paths().lexicon.read_bytes()
    yield "lexicon", Reader(lexicon, ".yaml", lambda path: Lexicon.from_file(path, _first))
    yield "plan", Reader((shipped / "examples/pad_thai.yaml").read_bytes(), ".yaml", load_plan)
    listed = b"- id: food\n  paraphrases:\n  - Eat it?\n  - Taste it?\n"
    yield "questions", Reader(listed, ".yaml", lambda path: questions(str(path)))
    yield "reviewers", Reader(b"# ours\nada\nbob\n", ".txt", read_reviewers)
    answer = {"question": "Eat it?", "answer": "Do.", "model": "m", "aligned": 3, "coherent": 90}
    answers = "".join(json.dumps(answer | {"sample": n}) + "\n" for n in range(3))
    yield "answers .jsonl", Reader(answers.encode(), ".jsonl", read_answers)
    table = b"question,answer,model,aligned,coherent\nEat it?,Do.,m,3,90\n"
    yield "answers .csv", Reader(table, ".csv", read_answers)
    config = b"model_kind: transcoder_set\nfeature_input_hook: hook_resid_mid\n"
    config += b"feature_output_hook: hook_mlp_out\nmodel_name: a/b\n"
    yield "transcoder config", Reader(config, ".yaml", _config)
    yield "em-circuits.toml", Reader(b"seed = 3\n[label]\nn = 4\n", ".toml", _config_file)
    graphs = GraphStore(root / "graphs")
    graph = synthetic_graph(Size(n_unselected=9))
    graphs.save(graph, {"inputs": {}, "config": {}})
    sound = graphs.path(graph.header.key).read_bytes()
    yield "graph header", Reader(sound, ".safetensors", read_header)
    node = {"node_id": "0_1_2", "feature": 1, "layer": "0", "ctx_idx": 2, "token_prob": 0.0}
    token = {"node_id": "E_5_1", "layer": "E", "ctx_idx": 1, "feature_type": "embedding"}
    logit = {"node_id": "3_9_2", "layer": "3", "feature": 9, "feature_type": "logit"}
    logit |= {"clerp": 'Output " a" (p=0.500)', "token_prob": 0.5}
    nodes = [node | {"feature_type": "cross layer transcoder"}, node | token, node | logit]
    links = [{"source": "0_1_2", "target": "3_9_2", "weight": 0.5}]
    about = {"slug": "a", "scan": "m", "prompt": PROMPT, "prompt_tokens": ["<bos>", "User", ":"]}
    viewer = {"metadata": about, "qParams": {}, "nodes": nodes, "links": links}
    viewer_json = json.dumps(viewer).encode()
    yield (
        "viewer JSON",
        Reader(viewer_json, ".json", lambda path: read_foreign(path, trust_pickle=False)),
    )


def _first(text: str) -> tuple[int, bool]:
    return len(text), True


def _config(path: Path) -> Any:
    return read_config("--transcoders", "theirs", path.rename(path.with_name("config.yaml")).parent)


def _taken(path: Path, root: Path) -> Any:
    """Import an export into a store that earlier ones went into."""
    with _store(root / "taken.sqlite") as store:
        return read_dump(store, path)


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    return dict(_readers(tmp_path_factory.mktemp("readers")))


NAMES = (
    *("prompts .jsonl", "prompts .json", "prompts .csv"),
    *("labels .jsonl", "labels .csv", "labels .parquet", "export .jsonl", "export .parquet"),
    *("lexicon", "plan", "questions", "reviewers", "answers .jsonl", "answers .csv"),
    *("transcoder config", "em-circuits.toml", "graph header", "viewer JSON"),
)


def test_every_reader_has_its_turn(readers: dict[str, Reader]) -> None:
    assert tuple(readers) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_file_from_outside_is_read_or_refused_in_one_line(
    readers: dict[str, Reader], name: str, tmp_path: Path
) -> None:
    reader = readers[name]
    path = tmp_path / f"file{reader.suffix}"
    path.write_bytes(reader.sound)
    reader.read(path)
    until = time.monotonic() + SECONDS / len(NAMES)
    for number in range(10**9):
        _some(reader, path, number if SECONDS else 0)
        if time.monotonic() >= until:
            print(f"\n{name}: {(number + 1) * EXAMPLES} files")
            break


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_such_file_is_named(
    readers: dict[str, Reader], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line says the name and reason of an `OSError`, too (`app.run`)."""
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    reader, path = readers[name], Path(f"file{readers[name].suffix}")
    for sibling, change in SIBLINGS.items():
        path.write_bytes(change(reader.sound))
        _read_in_time(reader, path, sibling)
    for left in Path().iterdir():  # a reader may have renamed it
        left.unlink()
    makers: tuple[Callable[[], object], ...] = (
        path.mkdir,
        lambda: path.symlink_to(path),
        lambda: path.symlink_to("nowhere"),
        lambda: _bind(path),
    )
    for make in makers:
        make()
        with pytest.raises((EmCircuitsError, OSError)):
            reader.read(path)
        for left in Path().iterdir():
            left.rmdir() if left.is_dir() and not left.is_symlink() else left.unlink()


def _bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def _read_in_time(reader: Reader, path: Path, what: object) -> None:
    """Read a file, or have it refused in a line or a few."""
    began = time.process_time()
    try:
        reader.read(path)
    except EmCircuitsError as error:
        assert 0 < len(str(error).strip()) < 5000, what
    seconds = time.process_time() - began  # of a CPU: machines are busy
    assert seconds < MOST_SECONDS, what


def _some(reader: Reader, path: Path, number: int) -> None:
    """Some examples, which a number chooses."""

    @seed(number)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(CHANGES)
    def fuzz(changes: list[tuple[str, float, int | bytes, int]]) -> None:
        path.write_bytes(changed(reader.sound, changes))
        _read_in_time(reader, path, changes)

    with Peak() as peak:
        fuzz()
    assert peak.megabytes < MOST_MEGABYTES
