"""`validity`: a circuit chosen elsewhere passes, a wrong one fails, and both say why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import printed, root_after

from em_circuits.cli.app import run
from em_circuits.experiments.validity_settings import THRESHOLDS

QUICK = ["--resamples", "2", "--json"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return root_after(tmp_path_factory, ["label", "--n", "4", "--no-graphs"])


@pytest.fixture(scope="module")
def card(root: Path) -> dict[str, Any]:
    capture = pytest.MonkeyPatch()
    lines: list[str] = []
    with capture.context() as patched:
        patched.setattr("em_circuits.cli.output._print", lambda text, **_: lines.append(text))
        assert run(["--root", str(root), "validity", "--all", "--nodes", "top:8", *QUICK]) == 0
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def test_a_circuit_of_other_categories_is_above_every_control(card: dict[str, Any]) -> None:
    assert card["chosen_on"] == "the other half of the categories" and not card["in_sample"]
    assert [len(circuit) for circuit in card["nodes"]] == [8, 8] and len(card["prompts"]) == 4
    for name in ("necessity", "sufficiency"):
        claim = card[name]
        assert claim["low"] > claim["random"]["high"], name
        assert set(claim["baselines"]) == {"magnitude", "gradient", "integrated"}
        assert claim["share"] > claim["baselines"]["gradient"]["share"]
    checks = {check["name"]: check for check in card["checks"]}
    assert checks["necessity"]["passed"] and checks["specificity"]["passed"]
    assert card["tier"] != "not shown" and card["thresholds"]["version"] == 1
    assert {t["test"] for t in card["tests"]} == {"equivalence", "independence", "minimality"}
    assert card["stability"]["circuits"] == 2 and card["stability"]["chance"] < 0.05


def test_every_curve_ends_where_all_nodes_are_kept(card: dict[str, Any]) -> None:
    ends = [curve["faithfulness"][-1] for curve in card["curves"]]
    assert ends == pytest.approx([card["components"]["features"]["share"]] * 5, abs=1e-4)
    assert {c["ranking"] for c in card["curves"]} >= {"circuit", "random", "integrated"}
    by_name = {curve["ranking"]: curve["cpr"] for curve in card["curves"]}
    assert by_name["circuit"] > by_name["random"]
    assert card["components"]["together"]["share"] == pytest.approx(1, abs=1e-3)


def test_it_is_kept_with_a_page(
    root: Path,
    card: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    page = Path(card["files"]["html"]).read_text(encoding="utf-8")
    assert card["sentence"][:40] in page and "<script src=" not in page
    before = Path(card["files"]["json"]).stat().st_mtime_ns
    capsys.readouterr()
    assert run(["--root", str(root), "validity", "--all", "--nodes", "top:8", *QUICK[:2]]) == 0
    assert Path(card["files"]["json"]).stat().st_mtime_ns == before
    out = capsys.readouterr().out
    assert "tier: " in out and max(map(len, out.splitlines()[:-1])) <= 80
    assert run(["--root", str(root), "verify"]) == 0


def test_a_wrong_circuit_fails(
    root: Path, card: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Nodes that change but carry nothing, on the very prompts they are judged on."""
    wrong = quiet_nodes(root, card["prompts"])
    capsys.readouterr()
    command = ["--root", str(root), "validity", *card["prompts"], "--nodes", ",".join(wrong)]
    assert run([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tier"] == "not shown" and found["stability"] is None
    failed = {check["name"] for check in found["checks"] if check["passed"] is False}
    assert failed >= {"necessity", "sufficiency", "baselines"}
    assert "not shown to carry anything" in found["sentence"]


def quiet_nodes(root: Path, prompts: list[str]) -> list[str]:
    """Ids that change on a prompt and have the least integrated effects."""
    from em_circuits.contrast import Contrast
    from em_circuits.experiments.validity import CardPrompt, ranked_keys
    from em_circuits.interventions.circuits import CircuitRuns
    from em_circuits.workspace import load_pair
    from pivotal_tokens.store import Store, default_url

    with Store.open(default_url(root)) as store, load_pair() as pair:
        prompt = store.prompts.get(prompts[0])
        words = Contrast.from_labels(store.labels.of(prompt.prompt_id).by_token)
        runs = CircuitRuns.between(pair, pair.input_ids(prompt), words)
        one = CardPrompt.of_runs(prompt.prompt_id, None, runs)
        effects = one.effects["integrated"]
    quiet = sorted(effects, key=lambda key: abs(effects[key]))[:8]
    assert len(ranked_keys([one], "integrated")) > 100
    return [f"{layer}/{feature}" for layer, feature in quiet]


def reworded(root: Path, changes: dict[str, str]) -> list[dict[str, str]]:
    """Every labelled prompt, some words of it replaced."""
    from pivotal_tokens.store import Store, default_url

    with Store.open(default_url(root)) as store:
        lines = []
        for prompt in store.prompts.all():
            text = prompt.text
            for old, new in changes.items():
                text = text.replace(old, new)
            lines.append({"prompt_id": prompt.prompt_id[:8], "text": text})
        return lines


def test_the_choice_is_made_again_on_paraphrases_and_other_draws(
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The very same words choose the same circuit. A second round, in which four of eight nodes are
    made others, shares 4 of 12 with it: the mean of both is two thirds."""
    from em_circuits.experiments import validity

    found, lengths = [], {}
    really = validity.chosen_keys

    def chosen(prompts: list[validity.CardPrompt], by: Any, n: int) -> list[validity.Key]:
        keys = really(prompts, by, n)
        for one in prompts:
            length = len(one.runs.caches[0].input_ids)
            if length != lengths.setdefault(one.prompt_id, length):
                return [*keys[:4], *validity.ranked_keys(prompts, by)[-4:]]
        return keys

    monkeypatch.setattr(validity, "chosen_keys", chosen)
    for name, rounds in (("same", [{}]), ("other", [{}, {"User: ": "User: Hello. "}])):
        path = tmp_path / f"{name}.jsonl"
        lines = [json.dumps(line) for changes in rounds for line in reworded(root, changes)]
        path.write_text("\n".join(lines), encoding="utf-8")
        command = ["--root", str(root), "validity", "--all", "--nodes", "top:8", *QUICK]
        capsys.readouterr()
        again = ["--by", "integrated", "--seeds", "2", "--paraphrases", str(path)]
        assert run([*command, *again]) == 0
        found.append(json.loads(capsys.readouterr().out))
    same, other = (one["stability"] for one in found)
    assert same["paraphrases"] == 1.0 and same["paraphrased"] == 1
    assert same["seeds"] == 1.0, "a score over all prompts knows no order"
    assert other["paraphrased"] == 2
    assert other["paraphrases"] == pytest.approx((1 + 4 / 12) / 2)
    assert 0 <= same["noise_floor"] == other["noise_floor"] < 0.5
    check = next(one for one in found[1]["checks"] if one["name"] == "stability")
    least = min(other[name] for name in ("resampled", "seeds", "paraphrases"))
    assert check["value"] == least and "over paraphrases" in check["says"]
    assert check["threshold"] == max(0.25, 3 * other["chance"], other["noise_floor"])
    assert found[0]["key"] != found[1]["key"]


def test_pairs_of_circuits_share_what_both_have() -> None:
    from em_circuits.experiments.validity import _of_pairs

    circuits = [[(0, 1), (0, 2)], [(0, 2), (0, 1)], [(0, 2), (0, 3)], [(1, 1), (1, 2)]]
    assert _of_pairs(circuits) == [1, 1 / 3, 1 / 3, 0, 0, 0]


@pytest.mark.parametrize(
    ("content", "words", "says"),
    [
        ("", ["--nodes", "top:3"], "says nothing"),
        ("not json", ["--nodes", "top:3"], '"text": ...} a line'),
        ('{"prompt_id": "zzzz", "text": "x"}', ["--nodes", "top:3"], "of 0 prompts of the card"),
        ('{"prompt_id": "", "text": "x"}', ["--nodes", "top:3"], "of 4 prompts of the card"),
        (
            '{"prompt_id": "a", "text": "x"}\n' * 2,
            ["--nodes", "top:3"],
            "the same paraphrase twice",
        ),
        ('{"prompt_id": "a", "text": "x"}', ["--nodes", "0/1"], "nothing is chosen again"),
    ],
)
def test_paraphrases_that_will_not_do_are_refused(
    content: str,
    words: list[str],
    says: str,
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "paraphrases.jsonl"
    path.write_text(content, encoding="utf-8")
    capsys.readouterr()
    command = ["--root", str(root), "validity", "--all", "--paraphrases", str(path), *words]
    assert run(command) == 2
    assert says in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--nodes", "top:3"], "give PROMPT, several PROMPTs, or --all"),
        (["--all", "--nodes", "abs:3"], "--nodes abs:3: give top:N or names"),
        (["--all", "--nodes", "0/1,0/1"], "a node is named twice"),
        (["--all", "--nodes", "0/1,0/3/1"], "all as LAYER/POSITION/ID"),
        (["--all", "--nodes", "0/3/1"], "of one PROMPT"),
        (["--all", "--nodes", "x"], "--nodes 'x'"),
        (["zzzz", "--nodes", "top:3"], "zzzz is no prompt of the store, and no graph's key"),
        (["--all", "--nodes", "top:3", "--thresholds", "nothing.yaml"], "--thresholds nothing"),
    ],
)
def test_what_makes_no_sense_is_refused(
    words: list[str], says: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in printed(capsys, root, "validity", *words, status=2)


def test_thresholds_of_ones_own_make_another_card(
    root: Path, card: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = tmp_path / "strict.yaml"
    text = THRESHOLDS.read_text(encoding="utf-8")
    strict.write_text(text.replace("necessity: 0.3", "necessity: 1.5"), encoding="utf-8")
    command = ["--root", str(root), "validity", card["prompts"][0], "--json", "--nodes"]
    capsys.readouterr()
    assert run([*command, ",".join(card["nodes"][0][:3]), "--thresholds", str(strict)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["thresholds_sha256"] != card["thresholds_sha256"]
    check = next(one for one in found["checks"] if one["name"] == "necessity")
    assert check["passed"] is False and check["threshold"] == 1.5
    assert found["necessity"]["share"] > found["necessity"]["random"]["high"]


def test_a_graph_s_circuit_is_searched_and_measured(
    root: Path, card: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = card["prompts"][0]
    assert run(["--root", str(root), "graphs", "build", prompt, "--nodes", "150"]) == 0
    capsys.readouterr()
    command = ["--root", str(root), "graphs", "circuit", prompt, "--size", "12"]
    assert run([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["reference"] == "base" and len(found["members"]) == 12
    last = found["checkpoints"][-1]
    assert last["size"] == 12 and last["measured"] > 0.1 and last["necessity"] > 0.3
    sizes = [point["predicted"] for point in found["checkpoints"]]
    assert sizes == sorted(sizes)
    members = [name for group in found["supernodes"] for name in group["members"]]
    assert sorted(members) == sorted(member["node"] for member in found["members"])
    key = found["graph"][:12]
    assert run([*command[:-3], key, "--size", "3"]) == 0
    out = capsys.readouterr().out
    assert "validity --all --nodes " in out.splitlines()[-1]
