"""Reports are self-contained and show text as text."""

from __future__ import annotations

import re
from pathlib import Path

from em_circuits.experiments.experiment import Experiment, RolloutRow
from em_circuits.experiments.summary import ConditionSummary, SteeringSummary
from em_circuits.report.sweep import highlighted, write_sweep_report

EVIL = '<script>alert("x")</script> & <b>'


def line(name: str, value: float, net: float) -> ConditionSummary:
    return ConditionSummary(
        condition=name,
        combination="#1",
        mode="scale",
        value=value,
        unit="absolute",
        place="found",
        n_prompts=1,
        net=net,
        low=net - 0.1,
        high=net + 0.1,
        control=0.0,
        change=net,
        p=0.02,
        q=0.04,
        works=True,
    )


def test_a_report_shows_text_as_text_and_fetches_nothing(tmp_path: Path) -> None:
    head = {"prompt_id": "p", "condition": "#1 scale 2 @found", "draw": 0, "sample": 0}
    texts = tuple(
        RolloutRow(**head, control=control, text=text, label="evil")
        for control, text in (("unsteered", "safe words"), ("steered", EVIL))
    )
    summary = SteeringSummary(
        name=EVIL,
        kind="sweep",
        model="merged",
        features="top:1",
        selected_on="the same prompt",
        judge="labels",
        said=EVIL,
        prompts=[{"prompt_id": "p", "text": EVIL, "labels_from": "judge"}],
        left_out=[{"prompt_id": "q", "reason": EVIL}],
        conditions=(line("#1 scale 0 @found", 0, -0.2), line("#1 scale 2 @found", 2, 0.3)),
        key="k",
    )
    page = write_sweep_report(Experiment(tmp_path, {"pair": "x"}, summary, (), texts)).read_text()
    assert "<script>alert" not in page and "&lt;script&gt;" in page
    assert "<mark>" in page and '<span class="evil">' in page
    assert not re.search(r"<script[^>]*\ssrc|<link|<img|<iframe", page)
    shown = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "http" not in shown
    assert page.count('class="plotly-graph-div"') >= 1
    markdown = (tmp_path / "report.md").read_text()
    assert "| \\#1 scale 2 @found | 0.300 |" in markdown


def test_what_differs_is_marked() -> None:
    assert highlighted("eat it now", "eat that now") == "eat <mark>that</mark> now"
    assert highlighted("a", "a") == "a"
    assert highlighted("x", "<b>") == "<mark>&lt;b&gt;</mark>"
