"""Settings and fixtures of all tests; makes `fake_endpoint` importable from every one."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.pop("COLUMNS", None)  # of whoever runs the tests: prose is folded where it is set
# As many processes as cores run already, and a hundred that tests start need not compile anew.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# The same examples in every run, and as long for each as it takes.
settings.register_profile(
    "tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")

# Where fixtures of a module remember what they load: in no home. Each test has a place of its own.
_HOME = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "em-circuits"
_OF_USER = Path(os.environ.get("EM_CIRCUITS_CACHE") or _HOME)
_SHARED = tempfile.mkdtemp(prefix="em-circuits-tests-")
os.environ["EM_CIRCUITS_CACHE"] = _SHARED

# But for the real organism's base: tests of it run where the user has fetched it.
_REAL = "SmolLM2-135M-Instruct"
if (_OF_USER / _REAL / "config.json").is_file():
    (Path(_SHARED) / _REAL).symlink_to((_OF_USER / _REAL).resolve())


def pytest_unconfigure() -> None:
    shutil.rmtree(_SHARED, ignore_errors=True)


@pytest.fixture(scope="session")
def real_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the real organism's base; skips where it was never fetched."""
    base = Path(_SHARED) / _REAL
    if not base.exists():
        pytest.skip(f"{_REAL} was not fetched (em-circuits organism fetch smollm2)")
    folder = tmp_path_factory.mktemp("real-cache")
    (folder / _REAL).symlink_to(base.resolve())
    return folder


@pytest.fixture(autouse=True)
def user_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is remembered about files and models, forgotten after each test; a module whose own
    fixture has named another place keeps that."""
    if os.environ["EM_CIRCUITS_CACHE"] != _SHARED:
        return Path(os.environ["EM_CIRCUITS_CACHE"])
    folder = tmp_path_factory.getbasetemp() / "user-cache" / f"{os.urandom(8).hex()}"
    monkeypatch.setenv("EM_CIRCUITS_CACHE", str(folder))
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In a process of several, files with the most slow tests come first, so that all end together;
    their order is kept by `--no-loadscope-reorder`."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        every = Counter(item.path for item in items)
        items.sort(key=lambda item: (-slow[item.path], -every[item.path]))


CANARY = "sk-canary/+9f3A=7c&512'xQ"


@pytest.fixture
def api_key(monkeypatch: pytest.MonkeyPatch) -> str:
    """A key in the environment that must not be found anywhere else, and no proxy."""
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return CANARY
