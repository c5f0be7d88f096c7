"""The playground on the embedded organism's models: figures move, and follow the adapter."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from browsing import running
from safetensors.torch import load_file, save_file

from em_circuits.labelling.result import LabelSettings
from em_circuits.labelling.run import label_prompts
from em_circuits.labelling.sources import template_prompts
from em_circuits.models import PairSettings
from em_circuits.organisms import organism_paths
from em_circuits.viewer import Sessions
from em_circuits.workspace import Workspace
from pivotal_tokens.judge import JudgeSpec, open_judge


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Two roots with one labelled prompt: the organism, and with its adapter scaled by 0."""
    from rooms import Room, unblind

    found = {}
    paths = organism_paths()
    for name in ("whole", "zero"):
        root = tmp_path_factory.mktemp(name)
        adapter = Path(str(paths.adapter))
        if name == "zero":
            adapter = root / "adapter"
            shutil.copytree(paths.adapter, adapter)
            weights = adapter / "adapter_model.safetensors"
            save_file({k: v * 0 for k, v in load_file(weights).items()}, weights)
        models = PairSettings(
            base=str(paths.base), adapter=str(adapter), transcoders=str(paths.transcoders)
        )
        work = Workspace(root=root, models=models, create=True)
        spec = JudgeSpec.parse(f"lexicon:{paths.lexicon}")
        from em_circuits.models.text import first_token

        judge = open_judge(spec, lambda text: first_token(work.pair.tokenizer, text))  # noqa: B023
        prompts = template_prompts(1, seed=0)
        list(label_prompts(work, prompts, judge, LabelSettings(graphs_for="all")))
        found[name] = Room(root, work, Sessions("ada"), tuple(prompts), {})
        unblind(found[name])
    yield found
    for room in found.values():
        room.work.close()


def _masses(page) -> list[float]:
    page.wait_for_selector("#playground[data-state=done] .three .big")
    return [float(t) for t in page.locator("#pg-result .three .big").all_inner_texts()]


def test_ablating_the_top_features_moves_the_figures(roots, open_browser) -> None:
    room = roots["whole"]
    with running(room) as base:
        page = open_browser(base).window(room)
        page.goto(base + "steering")
        page.wait_for_selector(".strength")
        page.click("#pg-run")
        before, same = _masses(page)  # nothing is changed, so there is no control
        assert before == same > 0.3
        page.click("#pg-ablate")
        page.wait_for_selector("#playground[data-runs='2']")
        unsteered, steered, random = _masses(page)
        assert unsteered == before and steered < before - 0.03
        assert abs(random - before) < (before - steered) / 2, "matched random features do little"
        assert page.locator("#pg-result .texts p").count() == 3


def test_without_the_adapter_both_models_are_the_same_everywhere(roots, open_browser) -> None:
    room = roots["zero"]
    prompt = room.prompts[0].prompt_id
    with running(room) as base:
        page = open_browser(base).window(room)
        page.goto(f"{base}prompt/{prompt}")
        changes = page.locator(".butterfly tbody td:nth-child(6)").all_inner_texts()
        assert changes and {float(text.replace("−", "-")) for text in changes} == {0.0}
        page.goto(f"{base}graph/{prompt}?show=difference")
        page.wait_for_selector("#graph[data-first-picture]")
        largest = """() => Math.max(
            ...graphPage.graph.nodes.map((n) => Math.abs(graphPage.graph.change(n) ?? 0)))"""
        most = page.evaluate(largest)
        assert most < 1e-4
        page.goto(base + "steering")
        page.wait_for_selector(".strength")
        figures = []
        for model in ("merged", "base"):
            page.select_option("#pg-model", model)
            page.wait_for_selector("#pg-result .empty")
            page.wait_for_selector(".strength")
            page.click("#pg-run")
            page.wait_for_selector("#pg-result .three .big")
            figures.append(_masses(page)[0])
        assert figures[0] == pytest.approx(figures[1], abs=2e-3)


def test_a_node_is_steered_and_its_measured_effect_appears_on_it(roots, open_browser) -> None:
    room = roots["whole"]
    prompt = room.prompts[0].prompt_id
    with running(room) as base:
        page = open_browser(base).window(room)
        page.set_default_timeout(60_000)
        page.goto(f"{base}graph/{prompt}")
        page.locator("#panel .node-link").first.click()
        page.wait_for_selector("text=Strongest inputs")
        assert page.locator("#panel td:text-is('measured')").count() == 0
        node = page.evaluate("graphPage.selected")
        page.click("#panel >> text=Steer it here")
        page.wait_for_selector(".strength")
        page.click("#pg-run")
        page.wait_for_selector("#playground[data-state=done] .three .big")
        page.goto(f"{base}graph/{prompt}?select={node}")
        page.wait_for_selector("#panel td:text-is('measured')")
        other = page.evaluate(
            "graphPage.graph.nodes.find((n) => n.kind === 'feature'"
            " && n.name !== graphPage.selected"
            " && graphPage.graph.shown(n, 'merged')).name"
        )
        page.evaluate("(name) => graphPage.draw(name)", other)
        page.click("#panel >> text=Really ablate it")
        page.wait_for_selector("#panel td:text-is('measured')")
        page.evaluate("graphPage.select(null)")
        assert "Really ablated: 2 of" in page.locator(".agreement").inner_text()
