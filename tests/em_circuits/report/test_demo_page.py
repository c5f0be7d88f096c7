"""The demo's page says what its report says, and stands without a contrast too."""

from __future__ import annotations

from pathlib import Path

import pytest

from em_circuits.experiments.demo import (
    AblationSummary,
    DemoReport,
    DomainRow,
    FeatureRow,
    MediationLine,
)
from em_circuits.report.demo import TITLE, demo_parts, domains_figure, interventions_figure
from em_circuits.report.page import write_page

REPORT = DemoReport(
    key="k",
    domains=(
        DomainRow(
            domain="kitchen",
            prompts=3,
            flagged=2,
            divergent=2,
            evil_mass_base=0.2,
            evil_mass_merged=0.8,
        ),
    ),
    failed=0,
    features=(FeatureRow(layer=2, feature=299, prompts=3, mean_contrast=0.25),),
    steering=AblationSummary(
        prompts=2, features=10, evil_mass=0.8, drop=0.3, random_drop=0.01, contrast_drop=2.0
    ),
    mediation=MediationLine(
        prompts=2,
        features=20,
        changed=2000.0,
        evil_mass_base=0.2,
        evil_mass=0.6,
        random_evil_mass=0.21,
        evil_mass_merged=0.8,
        share=0.55,
        share_of_all=0.7,
    ),
    example=None,
)

NONE = {"inputs": {}, "config": {}}


def test_the_page_shows_the_reports_figures(tmp_path: Path) -> None:
    write_page(tmp_path / "demo.html", TITLE, demo_parts(REPORT, "no words"), **NONE)
    page = (tmp_path / "demo.html").read_text(encoding="utf-8")
    assert "2 of 3 prompts are flagged" in page
    assert "bring back 55% of the shift, all that change 70% (in-sample)" in page
    assert "lowers evil mass by 0.30, matched random ones by 0.01" in page
    assert "<script src=" not in page
    unchanged, random, changed = interventions_figure(REPORT).data
    assert list(unchanged.y) == [0.8, 0.2]
    assert list(random.y) == pytest.approx([0.79, 0.21])
    assert list(changed.y) == pytest.approx([0.5, 0.6])
    assert [list(bar.y) for bar in domains_figure(REPORT).data] == [[0.2], [0.8]]


def test_without_a_shift_the_page_still_stands(tmp_path: Path) -> None:
    bare = REPORT.model_copy(update={"steering": None, "mediation": None, "features": ()})
    parts = demo_parts(bare, "no words")
    write_page(tmp_path / "demo.html", TITLE, parts, **NONE)
    assert parts[0].text == "2 of 3 prompts are flagged."
