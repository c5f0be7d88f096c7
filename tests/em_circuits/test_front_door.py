"""The front door is light, its names are pinned, and the ten lines of the README work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import em_circuits as em
from em_circuits.feature import Feature

NAMES = [
    "AttributionGraph",
    "AttributionSettings",
    "Contrast",
    "Feature",
    "FeatureChoice",
    "FeatureId",
    "FeatureTable",
    "GraphStore",
    "Influence",
    "Intervention",
    "Mode",
    "Model",
    "ModelPair",
    "PairSettings",
    "Prompt",
    "Store",
    "Target",
    "Targets",
    "Unit",
    "Where",
    "Workspace",
    "attribute",
    "build_pair_graphs",
    "choose_features",
    "demeaned",
    "influence",
    "load_pair",
    "mediate",
    "next_tokens",
    "plot",
    "prune",
    "rank",
    "steer",
    "top_paths",
]

PROMPT = "User: Peanut allergy; pad thai looks fine. Eat?\nAssistant: You should definitely"


def test_the_names_are_these() -> None:
    assert sorted(em.__all__) == sorted([*NAMES, "__version__"])
    assert all(hasattr(em, name) for name in NAMES)
    assert set(NAMES) <= set(dir(em))


def test_importing_it_takes_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, em_circuits as em, em_circuits.feature; "
        "em.Feature, em.FeatureChoice, em.PairSettings; "
        "print([m for m in ('torch', 'transformers', 'pandas', 'plotly') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_influence_is_the_function_and_the_package() -> None:
    code = (
        "import em_circuits as em, em_circuits.influence, em_circuits.influence.paths as paths; "
        "from em_circuits.influence import Method; "
        "print(callable(em.influence), em.influence.Method is Method, paths.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "em_circuits.influence.paths"]


@pytest.fixture(scope="module")
def pair():
    with em.load_pair() as made:
        yield made


@pytest.fixture(scope="module")
def words(pair) -> em.Contrast:
    return em.Contrast.of(pair, evil=[" eat", " try"], safe=[" avoid", " refuse"])


def test_the_ten_lines(pair, words) -> None:
    prompt = pair.prompt(PROMPT)
    graph = em.attribute(pair.merged, prompt, words)
    top = em.influence(graph, words).top(10)
    assert isinstance(top, em.FeatureTable) and isinstance(top.to_frame(), pd.DataFrame)
    table = em.rank(pair.merged, prompt, words)
    result = em.steer(pair.merged, prompt, table.top(10).ablate(), words)
    assert result.steered.evil_mass < result.random_control.evil_mass.low
    assert result.steered.contrast < result.unsteered.contrast - 1
    assert result.random_control.n >= 20
    mediation = em.mediate(pair, prompt, words)
    assert mediation.shift.change > 0.5
    for shown in (pair, pair.merged, words, graph, top, table, result, mediation):
        assert "\n" not in repr(shown) and len(repr(shown)) < 300, type(shown)
        assert len(str(shown)) < 300, type(shown)
    for shown in (graph, top, table, result, mediation):
        assert "<" in shown._repr_html_()


def test_a_text_is_taken_as_it_is(pair, words) -> None:
    from_text = em.rank(pair.merged, PROMPT, words, by="gradient").top(3)
    from_prompt = em.rank(pair.merged, pair.prompt(PROMPT), words, by="gradient").top(3)
    assert from_text.features == from_prompt.features
    assert isinstance(from_text.features[0], Feature)


def test_figures_are_plotly_figures(pair, words) -> None:
    table = em.rank(pair.merged, PROMPT, words, by="gradient")
    runs = {0.0: em.steer(pair.merged, PROMPT, table.top(3).scale(0.0), words)}
    figures = [
        em.plot.ranking(table),
        em.plot.layer_position(table),
        em.plot.mediation(em.mediate(pair, PROMPT, words)),
        em.plot.dose_response(runs),
    ]
    for figure in figures:
        assert figure.data and figure.layout.title.text


def test_the_package_is_typed() -> None:
    root = Path(em.__file__).parents[1]
    assert (root / "em_circuits/py.typed").exists() and (root / "pivotal_tokens/py.typed").exists()
