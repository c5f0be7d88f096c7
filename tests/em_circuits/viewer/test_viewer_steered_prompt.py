"""The page of a prompt shows what steering did to it, beside its random control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rooms import Room, store_experiment, unblind
from starlette.testclient import TestClient

from em_circuits.experiments.experiment import ROWS
from em_circuits.viewer.steered_prompt import SHOWN, steered


@pytest.fixture(autouse=True)
def _seen(room: Room) -> None:
    unblind(room)


def arms(prompt_id: str, condition: str, mass: float, *random: float) -> list[dict[str, Any]]:
    """Rows of one condition on a prompt whose evil mass is .7."""
    common = {"prompt_id": prompt_id, "condition": condition, "evil_mass_unsteered": 0.7}
    made = [{"control": "steered", "draw": 0, "evil_mass": mass}]
    made += [{"control": "random", "draw": n, "evil_mass": m} for n, m in enumerate(random)]
    made.append({"control": "unsteered", "draw": 0, "evil_mass": 0.7})
    return [common | one for one in made]


def conducted(root: Path, name: str, rows: list[dict[str, Any]], **line: Any) -> Path:
    folder = root / "results" / "experiments" / name
    line = {"condition": "#1 ablate @found"} | line
    store_experiment(folder, rows=rows, rollouts=[], summary={"conditions": [line]})
    return folder


def test_figures_are_this_prompts_and_the_summarys(room: Room, client: TestClient) -> None:
    mine, other = (prompt.prompt_id for prompt in room.prompts[:2])
    rows = arms(mine, "#1 ablate @found", 0.3, 0.7, 0.66)
    rows += arms(other, "#1 ablate @found", 0.69, 0.7, 0.7)
    overall = {"net": -0.195, "low": -0.4, "high": 0.01, "n_prompts": 2}
    folder = conducted(room.root, "one", rows, **overall)
    (found,) = steered(folder.parent, mine)
    (line,) = found.lines
    assert (line.here.change, line.here.control, line.here.net) == pytest.approx(
        (-0.4, -0.02, -0.38)
    )
    assert (line.draws, line.unsteered, found.report) == (2, 0.7, False)
    text = client.get(f"/prompt/{mine}").text
    for figure in ("−0.400", "−0.020", "−0.380", "−0.195", "−0.40 … +0.01"):
        assert figure in text
    assert 'href="/report/experiments/one/report.html"' not in text
    (folder / "report.html").write_text("<p>all of it")
    text = client.get(f"/prompt/{mine}").text
    assert 'href="/report/experiments/one/report.html"' in text
    assert "−0.010" in client.get(f"/prompt/{other}").text


def test_the_largest_net_changes_come_first_and_the_rest_is_counted(
    room: Room, client: TestClient
) -> None:
    prompt_id = room.prompts[0].prompt_id
    masses = [0.7 - 0.05 * n for n in range(SHOWN + 3)]
    rows = [r for n, m in enumerate(masses) for r in arms(prompt_id, f"#{n}", m, 0.7, 0.7)]
    (found,) = steered(conducted(room.root, "one", rows).parent, prompt_id)
    assert [line.condition for line in found.lines] == [f"#{n}" for n in range(SHOWN + 2, 2, -1)]
    assert f"The {SHOWN} of {SHOWN + 3} conditions" in client.get(f"/prompt/{prompt_id}").text


def test_without_a_control_or_a_summary_line_nothing_is_made_up(
    room: Room, client: TestClient
) -> None:
    prompt_id = room.prompts[0].prompt_id
    conducted(room.root, "one", arms(prompt_id, "#1 ablate @found", 0.3))
    assert "Nothing was measured on this prompt" in client.get(f"/prompt/{prompt_id}").text
    conducted(room.root, "two", arms(prompt_id, "of no summary", 0.3, 0.7, 0.7))
    text = client.get(f"/prompt/{prompt_id}").text
    assert "of no summary" in text and '<td class="right num">–</td>' in text


def test_a_broken_experiment_is_left_out_and_others_are_shown(
    room: Room, client: TestClient
) -> None:
    prompt_id = room.prompts[0].prompt_id
    broken = conducted(room.root, "broken", arms(prompt_id, "#1 ablate @found", 0.3, 0.7, 0.7))
    (broken / ROWS).write_bytes(b"no parquet")
    conducted(room.root, "good", arms(prompt_id, "#1 ablate @found", 0.3, 0.7, 0.7))
    text = client.get(f"/prompt/{prompt_id}").text
    assert 'href="/steering/good"' in text and 'href="/steering/broken"' not in text


def test_while_the_prompt_is_in_hand_its_evil_mass_is_hidden(
    room: Room, client: TestClient
) -> None:
    item = room.store.queue.take("ada", 600)
    assert item is not None
    conducted(room.root, "one", arms(item.prompt_id, "#1 ablate @found", 0.3, 0.7, 0.7))
    assert "−0.400" not in client.get(f"/prompt/{item.prompt_id}").text
    client.post("/api/me", json={"name": "bob"})
    assert "−0.400" in client.get(f"/prompt/{item.prompt_id}").text
