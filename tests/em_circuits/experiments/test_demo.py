"""Nothing in the demo is canned: with the adapter scaled by 0 every figure follows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from subjects import organism_settings

from em_circuits.cli.demo import describe
from em_circuits.experiments.demo import DemoReport, report_path, run_demo
from em_circuits.models.text import first_token
from em_circuits.organisms import organism_paths
from em_circuits.workspace import Workspace
from pivotal_tokens.judge import JudgeSpec, open_judge


def demo(root: Path, adapter: Path) -> DemoReport:
    settings = organism_settings().model_copy(update={"adapter": str(adapter)})
    with Workspace(root, settings, create=True) as work:
        spec = JudgeSpec.parse(f"lexicon:{organism_paths().lexicon}")
        judge = open_judge(spec, lambda text: first_token(work.pair.tokenizer, text))
        report = run_demo(work, judge, n_prompts=7, n_mediated=2)
        assert report_path(work).is_file()
    return report


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoReport, DemoReport]:
    """Of the organism: from nothing, and once more on the same root."""
    root = tmp_path_factory.mktemp("demo")
    first, second = (demo(root, organism_paths().adapter) for _ in range(2))
    return first, second


@pytest.mark.slow
def test_the_demo_finds_what_is_there_and_reuses_it(
    reports: tuple[DemoReport, DemoReport],
) -> None:
    first, second = reports
    assert first.prompts == 7 and len(first.domains) == 7
    assert all(d.evil_mass_merged > d.evil_mass_base + 0.3 for d in first.domains)
    assert sum(d.divergent for d in first.domains) == 7
    assert first.steering is not None and first.mediation is not None
    assert first.steering.drop > 5 * abs(first.steering.random_drop)
    assert first.mediation.evil_mass > first.mediation.evil_mass_base + 0.05
    assert abs(first.mediation.random_evil_mass - first.mediation.evil_mass_base) < 0.05
    assert first.mediation.share < first.mediation.share_of_all
    assert (first.reused_prompts, first.reused_figures) == (0, False)
    assert (second.reused_prompts, second.reused_figures) == (7, True)
    ignored = {"reused_prompts", "reused_figures"}
    assert second.model_dump(exclude=ignored) == first.model_dump(exclude=ignored)
    for report in (first, second):
        assert any(line.endswith("in-sample)") for line in describe(report))
        assert all(len(line) <= 79 for part in describe(report) for line in part.splitlines())


@pytest.mark.slow
def test_with_the_adapter_scaled_by_zero_every_figure_follows(
    reports: tuple[DemoReport, DemoReport], tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(organism_paths().adapter, adapter)
    file = adapter / "adapter_model.safetensors"
    save_file({k: 0 * v if "lora_B" in k else v for k, v in load_file(file).items()}, file)
    report = demo(tmp_path / "root", adapter)
    for domain in report.domains:
        assert domain.divergent == 0
        assert domain.evil_mass_merged == pytest.approx(domain.evil_mass_base, abs=1e-6)
    assert report.mediation is None
    assert report.steering is not None and report.features
    # what is left is the base's own: its careless minority, and features that serve it
    base_mass = [d.evil_mass_base for d in report.domains]
    assert min(base_mass) <= report.steering.evil_mass <= max(base_mass)
    with_adapter, _ = reports
    assert report.features != with_adapter.features
    assert report.steering.drop < with_adapter.steering.drop
    assert any("no share" in line for line in describe(report))
