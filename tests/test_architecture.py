"""The house stands as drawn: imports point one way, importing does nothing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Every package may import those of a lower number, and its own.
FLOORS = {
    "pivotal_tokens.errors": 0,
    "pivotal_tokens.artefacts": 0,
    "pivotal_tokens.figures": 0,
    "pivotal_tokens.schema": 1,
    "pivotal_tokens.rates": 0,
    "pivotal_tokens.table_files": 2,
    "pivotal_tokens.pivotality": 2,
    "pivotal_tokens.verdict": 2,
    "pivotal_tokens.agreement": 2,
    "pivotal_tokens.store": 3,
    "pivotal_tokens.llm": 4,
    "pivotal_tokens.prompts": 5,
    "pivotal_tokens.judge": 6,
    "pivotal_tokens.generator": 7,
    "pivotal_tokens.review": 7,
    "pivotal_tokens.labels": 8,
    "em_circuits.feature": 9,
    "em_circuits.contrast": 9,
    "em_circuits.target": 9.2,
    "em_circuits.intervention": 9,
    "em_circuits.statistics": 9,
    "em_circuits.table": 9.5,
    "em_circuits.progress": 9,
    "em_circuits.sampling": 9,
    "em_circuits.models.family": 9.1,
    "em_circuits.models": 10,
    "em_circuits.activation_cache": 10.5,
    "em_circuits.object_store": 10.5,
    "em_circuits.bases": 10.5,
    "em_circuits.graphs": 11,
    "em_circuits.influence": 12,
    "em_circuits.interventions": 12,
    "em_circuits.features": 13,
    "em_circuits.training": 13.5,
    "em_circuits.organisms": 14,
    "em_circuits.workspace": 15,
    "em_circuits.cache": 15,
    "em_circuits.engine.settings": 14.5,
    "em_circuits.engine": 15.5,
    "em_circuits.labelling": 16,
    "em_circuits.experiments": 17,
    "em_circuits.report": 18,
    "em_circuits.audit": 18.5,
    "em_circuits.viewer": 19,
    "em_circuits.cli": 20,
}


# Classes that share most of their fields, each with the reason.
ALIKE = {
    ("EdgePart", "Carrier"): "a printed part has its carrier's fields flat, and a value",
    ("Intervention", "Change"): "what a browser may send, typed and bounded, is no intervention",
    ("RevealState", "Reveal"): "what the page shows of a reveal, without the item's own texts",
    (
        "TargetToken",
        "TokenScore",
    ): "an imported graph has no ranks; a model's next token always has",
}


# Public functions that share a name, each with the reason; what is new takes a name of its own.
HOMONYMS = {"routes": "every part of the viewer gives its own"}


def package_of(module: str) -> str | None:
    return next((p for p in FLOORS if module == p or module.startswith(p + ".")), None)


def modules() -> list[tuple[str, Path]]:
    found = []
    for package in ("pivotal_tokens", "em_circuits"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found.append((name.removesuffix(".__init__"), path))
    return found


def imports(path: Path) -> set[str]:
    """What a module imports, anywhere but in a method that shows an object in a notebook: a graph's
    picture is drawn by what is built on graphs."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    shown = [
        n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "_repr_html_"
    ]
    skipped = {id(inner) for function in shown for inner in ast.walk(function)}
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda v: v if isinstance(v, str) else "")
def test_imports_point_one_way(name: str, path: Path) -> None:
    mine = package_of(name)
    for imported in imports(path):
        theirs = package_of(imported)
        if name.startswith("pivotal_tokens"):
            assert not imported.startswith("em_circuits"), f"{name} imports {imported}"
        if mine and theirs and mine != theirs:
            assert FLOORS[theirs] < FLOORS[mine], f"{name} imports {imported}: a back arrow"


def test_every_package_has_a_floor() -> None:
    folders = {
        f"{package}.{path.name}"
        for package in ("pivotal_tokens", "em_circuits")
        for path in (ROOT / package).iterdir()
        if path.is_dir() and (path / "__init__.py").exists()
    }
    assert folders <= set(FLOORS)


@pytest.mark.parametrize("package", ["pivotal_tokens", "pivotal_tokens.review", "em_circuits.cli"])
def test_importing_is_light_and_writes_nothing(package: str, tmp_path: Path) -> None:
    code = f"import sys, {package}; print('torch' in sys.modules, 'openai' in sys.modules)"
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
    assert done.stderr == "" and not list(tmp_path.iterdir())


def test_no_two_classes_have_one_name() -> None:
    """One noun, one class: a name means one thing in both packages."""
    places: dict[str, list[str]] = {}
    for name, path in modules():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(name)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_no_public_function_outside_the_command_line_has_the_name_of_another() -> None:
    places: dict[str, list[str]] = {}
    for name, path in modules():
        if name.startswith("em_circuits.cli"):
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            if function and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(name)
    assert {name for name, found in places.items() if len(found) > 1} == set(HOMONYMS)


def test_no_two_classes_are_nearly_one() -> None:
    """Classes that share four fields, and three in five of all they have, say why."""
    fields: dict[str, set[str]] = {}
    for name, path in modules():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                own = {
                    line.target.id
                    for line in node.body
                    if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
                }
                fields[f"{name}.{node.name}"] = {one for one in own if not one.startswith("_")}
    alike = {
        (one.rsplit(".", 1)[1], other.rsplit(".", 1)[1])
        for one, mine in fields.items()
        for other, theirs in fields.items()
        if one < other
        and len(mine & theirs) >= 4
        and len(mine & theirs) >= 0.6 * len(mine | theirs)
    }
    assert alike == set(ALIKE)


def test_no_line_of_javascript_is_longer_than_120_columns() -> None:
    files = sorted((ROOT / "em_circuits/viewer/static").rglob("*.js"))
    assert files
    long = [
        f"{path.name}:{number}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if len(line) > 120
    ]
    assert long == []


def test_no_module_docstring_opens_with_a_question() -> None:
    folders = ("pivotal_tokens", "em_circuits", "scripts", "tests")
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    docs = {path: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) for path in files}
    first = {str(path.relative_to(ROOT)): doc.split("\n")[0] for path, doc in docs.items() if doc}
    assert first
    assert {name: line for name, line in first.items() if re.search(r"\w\?", line)} == {}


def test_no_two_test_files_have_one_name() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert {name for name in names if names.count(name) > 1} == set()


def test_every_decision_has_a_number_of_its_own() -> None:
    numbers = [path.name[:4] for path in (ROOT / "docs" / "decisions").glob("*.md")]
    assert sorted(numbers) == sorted(set(numbers))


def test_an_undefined_name_is_an_error_of_the_linter():
    planted = "def f(x: int) -> int:\n    return x + undefined_thing\n"
    command = [sys.executable, "-m", "ruff", "check", "--stdin-filename", "em_circuits/planted.py"]
    done = subprocess.run(
        [*command, "-"], input=planted, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "F821" in done.stdout


def test_influence_imports_nothing_but_tensors() -> None:
    heavy = ("circuit_tracer", "transformers", "plotly", "pandas")
    code = f"import sys, em_circuits.influence; print([m for m in {heavy} if m in sys.modules])"
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
