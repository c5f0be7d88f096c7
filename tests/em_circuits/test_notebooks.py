"""The notebooks of examples/ run, and are committed small, with outputs and without paths."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

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


def test_these_are_the_notebooks() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == set(NOTEBOOKS)


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(EXAMPLES / f"{name}.ipynb", tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLES.parent), *_python_path()]))
    monkeypatch.setenv("EM_CIRCUITS_EXAMPLE_MODEL", "two-layers")  # SmolLM2 would be a download
    notebook = nbformat.read(tmp_path / f"{name}.ipynb", as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, resources=resources).execute()


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
