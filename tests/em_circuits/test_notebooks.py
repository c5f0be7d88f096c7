"""The notebooks of examples/ run, and are committed small, with outputs and without paths."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from em_circuits.models.settings import NEURONS
from em_circuits.organisms.paths import SMOLLM2

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = (
    "first_look",
    "answers_to_levers",
    "indirect_objects",
    "induction_heads",
    "known_circuits",
    "labels_and_judge",
    "function_vectors",
    "steering_with_controls",
    "what_carries_it",
)
FEWER = {
    "answers_to_levers": {
        "--questions organism:6 --samples 6": "--questions organism:6 --samples 3",
        "--each 3/470,2/417,2/145,2/200 --values 0.5,1,2": "--each 3/470,2/417 --values 1",
        "--controls 6 --questions organism:6 --samples 4": (
            "--controls 2 --questions organism:2 --samples 2"
        ),
    },
    "what_carries_it": {"drawn_prompts(pair, 7,": "drawn_prompts(pair, 3,"},
}
"""Notebook -> what it says -> what the test runs instead; `make notebooks` runs all of it."""
ANEW = """
import os, sys
os.chdir({path!r})
for name in [name for name in sys.modules if name.startswith(("em_circuits", "pivotal_tokens"))]:
    del sys.modules[name]
%reset -f
"""


def test_these_are_the_notebooks() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == set(NOTEBOOKS)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NotebookClient]:
    """One kernel for all notebooks: torch is imported once."""
    place = {"metadata": {"path": str(tmp_path_factory.mktemp("kernel"))}}
    client = NotebookClient(new_notebook(), timeout=600, resources=place)
    path = os.pathsep.join([str(EXAMPLES.parent), *_python_path()])
    own = {"PYTHONPATH": path, "EM_CIRCUITS_EXAMPLE_MODEL": "two-layers"}  # SmolLM2 is a download
    with client.setup_kernel(env=os.environ | own):
        yield client


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name: str, kernel: NotebookClient, tmp_path: Path) -> None:
    """From no names and no module of this package; at fewer draws where it says how many."""
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for many, few in FEWER.get(name, {}).items():
                cell.source = cell.source.replace(many, few)
    notebook.cells.insert(0, new_code_cell(ANEW.format(path=str(tmp_path))))
    kernel.nb = notebook
    for number, cell in enumerate(notebook.cells):
        kernel.execute_cell(cell, number)


def test_what_is_asked_for_fewer_of_is_there_once() -> None:
    for name, changes in FEWER.items():
        text = (EXAMPLES / f"{name}.ipynb").read_text(encoding="utf-8")
        assert {many: text.count(many) for many in changes} == dict.fromkeys(changes, 1)


@pytest.mark.slow
def test_what_carries_it_runs_on_the_real_model_by_one_changed_line(
    real_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of its prompts, and not the curve over a million neurons: a minute instead of five."""
    monkeypatch.setenv("EM_CIRCUITS_CACHE", str(real_cache))
    notebook = nbformat.read(EXAMPLES / "what_carries_it.ipynb", as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    code = "\n".join(source for source in cells if "mediation" not in source)
    assert code.count('"toy"') == 1 and code.count("drawn_prompts(pair, 7,") == 1
    changed = code.replace('"toy"', f'"{SMOLLM2}"').replace("(pair, 7,", "(pair, 2,")
    names: dict[str, Any] = {}
    exec(compile(changed, "what_carries_it", "exec"), names)
    assert names["pair"].settings.transcoders == NEURONS
    results = names["results"]
    assert len({r.effects.subject.category for r in results}) == len(results) == 2
    assert all(r.share(20) > float(r.random_shares(20).mean()) for r in results)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_is_committed_with_outputs_under_a_megabyte(name: str) -> None:
    path = EXAMPLES / f"{name}.ipynb"
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code) and sum(len(c.outputs) for c in code) >= 3
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]
    assert path.stat().st_size < 1_000_000
    assert not re.search(r"/(home|root|work|tmp|Users)/", text)


def _python_path() -> list[str]:
    return [part for part in [os.environ.get("PYTHONPATH", "")] if part]
