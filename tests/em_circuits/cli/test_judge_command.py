"""A model judge from the command line, and the report on it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from commands import ask, printed
from fake_endpoint import FakeEndpoint
from sample_labels import events

from em_circuits.cli.app import run
from pivotal_tokens.store import Store, default_url

pytestmark = pytest.mark.usefixtures("api_key")


def label(root: Path, endpoint: FakeEndpoint, *options: str, n: int = 3) -> int:
    asked = ["--judge", "openai:o3", "--base-url", endpoint.base_url, "--no-graphs", *options]
    return run(["--root", str(root), "label", "--n", str(n), *asked])


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A root whose prompts a model judged with three votes, and the requests that took."""
    root = tmp_path_factory.mktemp("judge")
    with pytest.MonkeyPatch.context() as patch, FakeEndpoint() as endpoint:
        patch.setenv("OPENAI_API_KEY", "sk-for-a-fake-endpoint")
        assert label(root, endpoint, "--votes", "3", "--max-usd", "5") == 0
        requests = len(endpoint.requests)
        assert label(root, endpoint, "--votes", "3", "--max-usd", "5") == 0
        assert len(endpoint.requests) == requests  # done once, asked once
    return root, requests


def test_every_vote_is_asked_kept_and_paid_for(judged: tuple[Path, int], capsys) -> None:
    root, requests = judged
    with Store.open(default_url(root)) as store:
        votes, counts = store.results.votes(), store.queries.counts()
    assert requests == len(votes) == 9 and counts.judgements == 3
    assert counts.calls == {"settled": 9} and counts.usd > 0 and counts.unparsed == 0
    assert "model calls     9 (9 settled)" in printed(capsys, root, "status")


def test_the_report_is_one_object_and_a_page_without_a_network(
    judged: tuple[Path, int], capsys
) -> None:
    root, _ = judged
    with Store.open(default_url(root)) as store:
        for prompt in store.prompts.all():
            said = store.labels.of(prompt.prompt_id).judge
            labels = {item.token_id: item.label for item in said}
            store.labels.add(events(prompt.prompt_id, labels))
    report = ask(capsys, root, "judge", "report", "--resamples", "100")
    (one,) = report["judges"]
    assert one["judge"].startswith("openai:o3@v1-") and one["judge"].endswith("x3")
    assert one["tokens"]["agreement"]["percent"]["value"] == 1.0
    assert one["cost"]["calls"] == 9 and one["cost"]["found"] > 0
    folder = root / "results" / "judge"
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Plotly.newPlot" in page and 'src="http' not in page and one["judge"] in page
    assert json.loads((folder / "report.json").read_text()) == report
    assert (folder / "report.html.provenance.json").exists()
    assert (
        max(
            map(len, printed(capsys, root, "judge", "report", "--resamples", "0").splitlines()[:-1])
        )
        <= 79
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--max-usd", "1", "--judge", "openai:unheard-of"], "--price-in"),
        (["--base-url", "ftp://somewhere"], "--base-url"),
        (["--price-in", "1"], "both --price-in and --price-out"),
        (["--judge", "openai:"], "needs a model"),
        (["--judge-prompt", "v99"], "no judge prompt 'v99'"),
    ],
)
def test_a_wrong_request_is_one_line(tmp_path: Path, capsys, options, says: str) -> None:
    arguments = ["label", "--n", "1", "--judge", "openai:o3", "--no-graphs", *options]
    error = printed(capsys, tmp_path, *arguments, status=2).strip()
    assert says in error and len(error.splitlines()) == 1


def test_a_spent_budget_ends_the_run_and_says_how_to_go_on(tmp_path: Path, capsys) -> None:
    with FakeEndpoint("no_usage", cycle=True) as endpoint:
        assert label(tmp_path, endpoint, "--max-usd", "0.2", n=6) == 1
    error = capsys.readouterr().err
    assert "budget exhausted" in error and "--max-usd" in error
    with Store.open(default_url(tmp_path)) as store:
        counts = store.queries.counts()
    assert 0 < counts.usd <= 0.2 and counts.judgements == len(endpoint.requests)


def test_a_wrong_key_ends_the_run_at_once(tmp_path: Path, capsys, api_key: str) -> None:
    with FakeEndpoint("401", cycle=True) as endpoint:
        assert label(tmp_path, endpoint) == 1
    error = capsys.readouterr().err
    assert "OPENAI_API_KEY" in error and api_key not in error


def test_a_person_can_be_the_judge_without_a_key(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    asked = ["--root", str(tmp_path), "label", "--n", "1", "--judge", "human", "--no-graphs"]
    assert run(asked) == 0
    assert "1 waiting for a person; 0 flagged" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO("T1\n\n"))
    assert run(["--root", str(tmp_path), "review", "--plain", "--reviewer", "ada"]) == 0
    capsys.readouterr()
    assert run([*asked, "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["judge"] == "human" and "waiting" not in line and line["flagged"] is True
    assert line["merged"][0]["label"] == "evil"
    assert {token["label"] for token in line["merged"][1:]} == {"safe"}
