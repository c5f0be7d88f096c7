"""Fixtures of the tests of steering."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from steering_subjects import Subject, lifelike_subject, organism_subject


@pytest.fixture(scope="session", params=["lifelike", "organism"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """Both fixtures of the project in turn."""
    if request.param == "organism":
        made: Subject = organism_subject()
    else:
        made = lifelike_subject(tmp_path_factory.mktemp("lifelike"))
    with made.pair:
        yield made
