"""A fingerprint changes with every file that is loaded, and with no other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lifelike import PROMPT, Lifelike
from safetensors.torch import load_file, save_file
from test_pair import settings
from transformers import AutoModelForCausalLM, AutoTokenizer

from em_circuits.models import ModelPair, encode
from em_circuits.models.fingerprint import FingerprintCache
from em_circuits.models.source import Kind, locate
from em_circuits.organisms.paths import organism_paths
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import RequestError

WAYS: dict[str, dict] = {
    "safetensors": {},
    "safetensors, split": {"max_shard_size": "60KB"},
    "bin": {"safe_serialization": False},
    "bin, split": {"safe_serialization": False, "max_shard_size": "60KB"},
}


KEYS = ["2c5d9c36e67c", "0341c8ca6305", "bde9922c113d"]
"""First digits of the organism's fingerprints in stores and graphs of the first edition."""


def fingerprint(folder: Path, kind: Kind = "model") -> str:
    return FingerprintCache().of(locate("--it", str(folder), kind=kind).files)


def save(model, folder: Path, tokenizer, **way) -> Path:
    model.save_pretrained(folder, **way)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def parts(lifelike_paths: Lifelike):
    model = AutoModelForCausalLM.from_pretrained(lifelike_paths.base, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(lifelike_paths.base)


@pytest.mark.parametrize("way", list(WAYS))
def test_one_number_of_the_weights_changes_it_however_they_are_saved(
    way: str, parts, tmp_path: Path
) -> None:
    # weights that are no top-level *.safetensors were in no fingerprint
    model, tokenizer = parts
    before = fingerprint(save(model, tmp_path / "a", tokenizer, **WAYS[way]))
    assert fingerprint(save(model, tmp_path / "b", tokenizer, **WAYS[way])) == before
    weight = model.get_parameter("model.layers.3.mlp.down_proj.weight")
    with torch.no_grad():
        weight[0, 0] += 1
        after = fingerprint(save(model, tmp_path / "c", tokenizer, **WAYS[way]))
        weight[0, 0] -= 1
    assert after != before


@pytest.mark.parametrize("way", list(WAYS))
def test_the_files_in_it_are_enough_to_load_the_model(way: str, parts, tmp_path: Path) -> None:
    model, tokenizer = parts
    source = locate(
        "--base", str(save(model, tmp_path / "a", tokenizer, **WAYS[way])), kind="model"
    )
    alone = tmp_path / "alone"
    for name, path in source.files.items():
        (alone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, alone / name)
    ids = torch.tensor(encode(AutoTokenizer.from_pretrained(alone), PROMPT))[None]
    loaded = AutoModelForCausalLM.from_pretrained(alone, dtype=torch.float32)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert AutoTokenizer.from_pretrained(alone).chat_template == tokenizer.chat_template


def test_what_is_never_loaded_does_not_change_it(lifelike_copy: Lifelike) -> None:
    # a log that was rewritten beside the weights changed the key
    folders: dict[Kind, Path] = {
        "model": lifelike_copy.base,
        "adapter": lifelike_copy.adapter,
        "transcoders": lifelike_copy.transcoders,
    }
    before = {kind: fingerprint(folder, kind) for kind, folder in folders.items()}
    others = ("trainer_state.json", "README.md", "LICENSE.txt", "optimizer.pt", "all_results.json")
    for folder in folders.values():
        for name in (*others, "training_args.bin", "notes.yaml"):
            (folder / name).write_text("{}")
        (folder / "old").mkdir()
        shutil.copy(next(folder.glob("*.safetensors")), folder / "old" / "layer_0.safetensors")
        # Beside whole safetensors, transformers leaves a pickle of the same model alone.
        (folder / "pytorch_model.bin").write_bytes(b"other")
    assert {kind: fingerprint(folder, kind) for kind, folder in folders.items()} == before


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_configuration_and_tokenizer_change_it(lifelike_copy: Lifelike, name: str) -> None:
    before = fingerprint(lifelike_copy.base)
    file = lifelike_copy.base / name
    file.write_text(json.dumps(json.loads(file.read_text()) | {"more": 1}))
    assert fingerprint(lifelike_copy.base) != before


def test_the_embedded_organisms_keys_are_those_of_the_first_edition() -> None:
    # stores and graphs that were written with them stay valid
    paths = organism_paths()
    found = [
        fingerprint(paths.base),
        fingerprint(paths.adapter, "adapter"),
        fingerprint(paths.transcoders, "transcoders"),
    ]
    assert [one[:12] for one in found] == KEYS


def test_two_fine_tunes_saved_as_pickles_are_two_pairs(
    lifelike_paths: Lifelike, parts, tmp_path: Path
) -> None:
    model, tokenizer = parts
    weight = model.get_parameter("model.layers.2.mlp.down_proj.weight")
    keys = []
    for change in (0.5, -0.5):
        with torch.no_grad():
            weight[0] += change
            folder = save(model, tmp_path / str(change), tokenizer, safe_serialization=False)
            weight[0] -= change
        with ModelPair.load(settings(lifelike_paths, adapter=None, merged=str(folder))) as pair:
            keys.append((pair.key, pair.base.fingerprint))
    assert keys[0][0] != keys[1][0] and keys[0][1] == keys[1][1]


def _scaled(folder: Path, pattern: str) -> None:
    for file in folder.glob(pattern):
        save_file({name: 2 * value for name, value in load_file(file).items()}, file)


CHANGES: dict[str, Callable[[Lifelike], None]] = {
    "adapter": lambda paths: _scaled(paths.adapter, "*.safetensors"),
    "transcoders": lambda paths: _scaled(paths.transcoders, "layer_1.safetensors"),
    "base": lambda paths: _scaled(paths.base, "*.safetensors"),
}


@pytest.mark.parametrize("changed", list(CHANGES))
def test_stored_work_that_no_longer_fits_says_what_changed(
    lifelike_copy: Lifelike, changed: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from em_circuits.graphs.settings import AttributionSettings
    from em_circuits.labelling.graphs import build_graphs

    chosen = settings(lifelike_copy)
    with Workspace(root=tmp_path, models=chosen, create=True) as work:
        work.register_pair()
        first = work.pair.key
        prompt = work.pair.prompt(PROMPT)
        work.store.prompts.add(prompt)
        build_graphs(work, prompt, AttributionSettings(nodes=4))
    CHANGES[changed](lifelike_copy)
    with Workspace(root=tmp_path, models=chosen) as work:
        assert work.pair.key != first
        with pytest.raises(RequestError, match=rf"{first[:12]} do not fit \({changed} was \w+, is"):
            work.graph_record(prompt.prompt_id, "merged", work.pair.key)
        work.register_pair()
        # And where the pair was registered by a version that kept no fingerprints:
        about = dict(work.store.results.pairs()[first])
        del about["fingerprints"]
        work.store.results.put_pair(first, about)
        with pytest.raises(RequestError, match=rf"\({changed} was \w+, is \w+\)"):
            work.graph_record(prompt.prompt_id, "merged", work.pair.key)
    said = [record.getMessage() for record in caplog.records if "same names" in record.message]
    assert len(said) == 1 and f"{changed} was " in said[0]


def test_a_key_needs_no_store_and_with_one_no_models(
    lifelike_paths: Lifelike, tmp_path: Path
) -> None:
    chosen = settings(lifelike_paths)
    with Workspace(root=tmp_path, models=chosen) as work:  # as of imported answers
        key = work.pair_key
        assert work.loaded_pair is not None and key == work.pair.key
    with Workspace(root=tmp_path, models=chosen, create=True) as work:
        work.register_pair()
    with Workspace(root=tmp_path, models=chosen) as work:
        assert work.pair_key == key and work.loaded_pair is None


def test_hashing_ends_once_however_many_small_files_come_last(tmp_path: Path) -> None:
    files = {"large": tmp_path / "large", **{f"{i}": tmp_path / f"small-{i}" for i in range(9)}}
    for name, path in files.items():
        path.write_bytes(bytes(2_500_000 if name == "large" else 10))
    seen: list[tuple[str, int, int]] = []
    FingerprintCache().of(files, lambda *step: seen.append(step))
    done = [step[1] for step in seen]
    assert {step[::2] for step in seen} == {("hashing (MB)", 3)}
    assert done[0] == 0 and done.count(3) == 1 and done[-1] == 3 and done == sorted(done)
