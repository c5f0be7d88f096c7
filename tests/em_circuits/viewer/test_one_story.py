"""Every page and command over one store of the embedded organism: no two disagree on a count or
on a feature's sign."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rooms import Room, unblind
from starlette.testclient import TestClient

from em_circuits.cli.app import run
from em_circuits.labelling.result import LabelSettings
from em_circuits.labelling.run import label_prompts
from em_circuits.labelling.sources import template_prompts
from em_circuits.models.text import first_token
from em_circuits.viewer import Sessions
from em_circuits.workspace import Workspace, embedded_parts
from pivotal_tokens.judge import JudgeSpec, open_judge

NO_PARTS = dict.fromkeys(("base", "adapter", "merged", "transcoders"))
N = 2


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory):
    """Two labelled prompts with graphs, looked at without blinding."""
    from em_circuits.models import PairSettings
    from em_circuits.organisms import organism_paths

    root = tmp_path_factory.mktemp("story")
    models = PairSettings.model_validate(embedded_parts(NO_PARTS))
    with Workspace(root=root, models=models, create=True) as work:
        spec = JudgeSpec.parse(f"lexicon:{organism_paths().lexicon}")
        judge = open_judge(spec, lambda text: first_token(work.pair.tokenizer, text))
        prompts = template_prompts(N, seed=0)
        list(label_prompts(work, prompts, judge, LabelSettings(graphs_for="all")))
        room = Room(root, work, Sessions("ada"), tuple(prompts), {})
        unblind(room)
        yield room


@pytest.fixture
def command(story: Room, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a command over the same root; its JSON."""

    def ran(*words: str) -> Any:
        capsys.readouterr()
        assert run(["--root", str(story.root), *words, "--json"]) == 0
        lines = capsys.readouterr().out.splitlines()
        return [json.loads(line) for line in lines] if len(lines) > 1 else json.loads(lines[0])

    return ran


@pytest.fixture
def client(story: Room) -> TestClient:
    """A browser on it."""
    return story.client()


def test_no_two_count_differently(
    story: Room, client: TestClient, command: Callable[..., Any]
) -> None:
    counts = command("status")
    overview = client.get("/").text
    pairs = re.findall(r'step-count">([^<]*)</span><span class="step-name">([^<]*)<', overview)
    shown = {name: int(number) for number, name in pairs}
    divergence = command("labels", "divergence", "--labels", "judge")
    said = {
        "prompts": {
            counts["prompts"],
            shown["prompts"],
            len(command("prompts", "list")),
            client.get("/prompts").text.count('class="row-link"'),
            N,
        },
        "graphs": {
            counts["graphs"],
            shown["graphs"],
            len(command("graphs", "list")),
            2 * client.get("/graphs").text.count('class="tile"'),
        },
        "flagged": {
            counts["flagged"],
            shown["flagged"],
            client.get("/prompts?only=flagged").text.count('class="row-link"'),
        },
        "divergent": {
            counts["divergent"],
            shown["divergent"],
            client.get("/prompts?only=divergent").text.count('class="row-link"'),
            divergence["totals"]["divergent"],
        },
        "waiting": {
            sum(counts["queue"].values()),
            int(re.findall(r"Review (\d+) waiting", overview)[0]),
            int(re.findall(r"Answer the (\d+) prompts", overview)[0]),
            int(re.findall(r"of the (\d+) prompts that wait", client.get("/prompts").text)[0]),
        },
    }
    assert {name: values for name, values in said.items() if len(values) > 1} == {}


def test_no_two_give_a_feature_another_sign(
    story: Room, client: TestClient, command: Callable[..., Any]
) -> None:
    prompt = story.prompts[0].prompt_id
    ranked = {
        method: {_name(f): f["contrast"] for f in command(*words)["features"]}
        for method in ("gradient", "total_effect")
        for words in [("features", "rank", prompt, "--method", method)]
    }
    influence = command("influence", prompt, "--targets", "evil-safe")
    found = {
        "features rank, gradient": ranked["gradient"],
        "features rank, total effect": ranked["total_effect"],
        "influence": {
            _name(n): n["values"][0] for n in influence["nodes"] if n["kind"] == "feature"
        },
    }
    record = client.get(f"/api/graph/{prompt}?node=0.98").json()
    names = record["nodes"]["name"]
    for by, values in record["views"]["merged"]["scores"].items():
        if by != "direct":  # one hop is another question, and says so
            found[f"graph page, {by}"] = dict(zip(names, values, strict=True))
    page = client.get(f"/api/prompt/{prompt}/features").json()
    found["prompt page"] = {_name(f): f["contrast"] for f in page["top"] + page["bottom"]}
    strongest = sorted(found["influence"], key=lambda n: -abs(found["influence"][n] or 0))
    strongest = strongest[:20]
    assert len(strongest) == 20
    for name in strongest:
        layer, position, feature = name.split("/")
        where = client.get(f"/api/features/where?layer={layer}&feature={feature}").json()
        (mine,) = (p for p in where["places"] if p["prompt_id"] == prompt)
        contrast = {str(p): c for p, _, c in mine["firing"]}[position]
        node = client.get(f"/api/graph/{prompt}/node", params={"name": name}).json()
        signs = {
            place: values[name] > 0
            for place, values in found.items()
            if values.get(name) is not None
        }
        signs["feature page"] = contrast > 0
        signs["node panel"] = node["models"]["merged"]["scores"]["total_effect"] > 0
        assert len(set(signs.values())) == 1, (name, signs)


def test_what_a_command_measured_is_on_every_page(
    story: Room, client: TestClient, command: Callable[..., Any]
) -> None:
    prompt = story.prompts[0].prompt_id
    words = ("features", "rank", prompt, "--method", "gradient", "--top", "1")
    name = _name(command(*words)["features"][0])
    steered = command("steer", "run", prompt, "--features", name)
    effect = steered["worlds"]["unsteered"]["contrast"] - steered["worlds"]["steered"]["contrast"]
    node = client.get(f"/api/graph/{prompt}/node", params={"name": name}).json()
    assert node["models"]["merged"]["scores"]["measured"] == pytest.approx(effect)
    (kept,) = command("status", prompt)["results"]
    assert kept["kind"] == "steer" and name in kept["said"]
    files = list((Path(story.root) / "results" / "prompts" / prompt).glob("steer-*.json"))
    before = [file.stat().st_mtime_ns for file in files]
    assert command("steer", "run", prompt, "--features", name) == steered
    assert [file.stat().st_mtime_ns for file in files] == before, "printed again, not run again"


def _name(feature: dict[str, Any]) -> str:
    return f"{feature['layer']}/{feature['position']}/{feature['feature']}"
