"""Code that comes with a model is never run, and nobody is asked whether it may."""

from __future__ import annotations

import ast
import json
import re
import shutil
from pathlib import Path

import pytest

import em_circuits
from em_circuits.cli.app import run
from em_circuits.organisms.paths import organism_paths

PATHS = organism_paths()
CODE = "import pathlib; pathlib.Path({mark!r}).touch()\n"


@pytest.mark.parametrize("spoilt", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("known", [True, False])
def test_a_model_with_code_of_its_own_is_loaded_without_it_or_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    spoilt: str,
    known: bool,
) -> None:
    base, mark = tmp_path / "base", tmp_path / "ran"
    shutil.copytree(PATHS.base, base)
    (base / "theirs.py").write_text(CODE.format(mark=str(mark)) + "class Theirs: pass\n")
    config = json.loads((base / spoilt).read_text())
    theirs = ["theirs.Theirs", "theirs.Theirs"] if "tokenizer" in spoilt else "theirs.Theirs"
    names = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")
    config["auto_map"] = dict.fromkeys(names, theirs)
    if not known:
        config |= {"model_type": "theirs", "tokenizer_class": "Theirs"}
    (base / spoilt).write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question on the terminal"))
    common = ["--base", str(base), "--adapter", str(PATHS.adapter), "--dtype", "float32"]
    common += ["--transcoders", "none", "--root", str(tmp_path)]
    judge = ["--judge", f"lexicon:{PATHS.lexicon}"]
    status = run([*common, "label", "--prompt", "a rash", "--no-graphs", *judge])
    err = capsys.readouterr().err
    assert not mark.exists()
    assert status in (0, 2), err
    assert "Traceback" not in err
    imported = tmp_path / "labels.jsonl"
    imported.write_text("{}\n")
    run(["--root", str(tmp_path), "labels", "import", str(imported), "--tokenizer", str(base)])
    assert not mark.exists()


def test_every_class_that_could_run_code_is_told_not_to() -> None:
    """Without the argument transformers asks on the terminal, and a key press runs the code."""
    calls = [
        (path.name, ast.unparse(call))
        for path in Path(em_circuits.__file__).parent.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and re.match(r"Auto\w+\.from_pretrained$", _name(call))
    ]
    assert len(calls) >= 5
    assert not [call for call in calls if "trust_remote_code=False" not in call[1]]


def _name(call: ast.Call) -> str:
    return ast.unparse(call.func)
