"""``--organism``: an embedded pair by name, wherever a global option can stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from em_circuits.cli import app as command_line
from em_circuits.cli.session import Session
from em_circuits.organisms import organism_paths
from em_circuits.organisms.paths import TOY_DOWN_PROJ

DOWN_PROJ = organism_paths(TOY_DOWN_PROJ)


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The session that a command line opens."""
    opened: list[Session] = []
    real = command_line.Session
    monkeypatch.setattr(
        command_line, "Session", lambda *given: opened.append(real(*given)) or opened[-1]
    )
    monkeypatch.chdir(tmp_path)

    def of(*arguments: str) -> Session:
        assert command_line.run([*arguments, "organism", "--help"]) == 0
        return opened[-1]

    return of


def test_without_it_the_first_organism_is_meant(session) -> None:
    found = session()
    assert found.organism == "toy" and found.embedded
    assert found.models().adapter == str(organism_paths().adapter)
    assert found.command() == "em-circuits"


def test_it_stands_before_the_command(session) -> None:
    found = session("--organism", "toy-down-proj")
    models = found.models()
    assert models.adapter == str(DOWN_PROJ.adapter) != str(organism_paths().adapter)
    assert models.base == str(organism_paths().base)
    assert found.command() == "em-circuits --organism toy-down-proj"
    assert found.judge_spec(None) == f"lexicon:{organism_paths().lexicon}"


def test_it_stands_in_the_environment(session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EM_CIRCUITS_ORGANISM", "toy-down-proj")
    assert session().organism == "toy-down-proj"


def test_it_stands_in_the_configuration_file(session, tmp_path: Path) -> None:
    (tmp_path / "em-circuits.toml").write_text('organism = "toy-down-proj"\n')
    assert session().organism == "toy-down-proj"


def test_the_command_of_the_same_name_keeps_its_tables(session, tmp_path: Path) -> None:
    (tmp_path / "em-circuits.toml").write_text('[organism.evaluate]\nprompts = "7"\n')
    assert session().organism == "toy"
    assert command_line._config_file(tmp_path / "em-circuits.toml") == {
        "organism": {"evaluate": {"prompts": "7"}}
    }


def test_another_adapter_on_its_base_is_allowed(session) -> None:
    models = session("--organism", "toy-down-proj", "--adapter", "mine").models()
    assert models.adapter == "mine" and models.base == str(DOWN_PROJ.base)
