"""`features aggregate` and `features diff` on a few labelled prompts of the organism."""

from __future__ import annotations

import json
import math
from pathlib import Path

import commands
import pytest

from em_circuits.cli.app import run
from em_circuits.contrast import Contrast
from em_circuits.features import stored_scores
from em_circuits.workspace import Workspace

N = 3
PLACE = {"layer", "feature", "offset"}
STATES = {"selected", "partial", "not_selected", "inactive", "n"}
FIGURES = {"mean", "sd", "low", "high", "mean_selected", "same_sign", "p", "q", "stable"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a few flagged prompts and their graphs."""
    made = tmp_path_factory.mktemp("features")
    command = ["label", "--n", str(N), "--max-features", "120", "--json"]
    assert run(["--root", str(made), *command]) == 0
    return made


def ask(capsys: pytest.CaptureFixture[str], root: Path, *arguments: str):
    return commands.ask(capsys, root, "features", *arguments)


def contrasts(root: Path, shown: dict, model: str = "merged") -> dict[tuple[int, int], list[float]]:
    """The mean contrast of every (layer, feature), summed by hand from the stored graphs."""
    from em_circuits.graphs import GraphStore
    from pivotal_tokens.store import Store, default_url

    sums: dict[tuple[int, int], list[float]] = {}
    with Store.open(default_url(root)) as store:
        for number, prompt in enumerate(shown["prompts"]):
            graph = GraphStore(root / "graph_storage").load(prompt["graphs"][model])
            labels = store.labels.of(prompt["prompt_id"]).by_token
            for row in stored_scores(graph, "gradient").ranked(Contrast.from_labels(labels)):
                sums.setdefault((row.layer, row.feature), [0.0] * N)[number] += row.contrast
    return sums


def test_aggregate_has_the_documented_shape_and_the_means_of_the_ranks(root, capsys) -> None:
    shown = ask(capsys, root, "aggregate", "--min-prompts", "3")
    assert {p["labels_from"] for p in shown["prompts"]} == {"judge"} and not shown["left_out"]
    assert set(shown["features"][0]) == PLACE | STATES | FIGURES
    assert shown["permutations"]["n"] > 0 and shown["n_tested"] > 10
    assert shown["stability"]["k"] == 20 and 0 <= shown["stability"]["least_overlap"] <= 1
    expected = contrasts(root, shown)
    assert len(expected) == shown["n_features"] == len(shown["features"])
    for line in shown["features"]:
        values = expected[line["layer"], line["feature"]]
        assert line["mean"] == pytest.approx(sum(values) / N, abs=1e-9)
        assert line["offset"] is None and line["n"] == N
        assert (line["p"] is None) == (line["selected"] < 3)
    means = [line["mean"] for line in shown["features"]]
    assert means == sorted(means, reverse=True)


def test_a_kept_table_is_used_until_a_label_changes(root, capsys, monkeypatch) -> None:
    first = ask(capsys, root, "aggregate", "--top", "2")
    again = ask(capsys, root, "aggregate", "--top", "2")
    assert again["reused"] and again | {"reused": None} == first | {"reused": None}
    assert all(Path(path).is_file() for path in again["files"].values())
    named = [p["prompt_id"][:8] for p in reversed(first["prompts"])]
    assert ask(capsys, root, "aggregate", *named, "--top", "2")["key"] == first["key"]
    assert not ask(capsys, root, "aggregate", named[0], "--top", "2")["reused"]

    from pivotal_tokens.schema import LabelEvent
    from pivotal_tokens.store import Store, default_url

    prompt_id = first["prompts"][0]["prompt_id"]
    with Store.open(default_url(root)) as store:
        token = store.labels.of(prompt_id).ids("evil")[-1]
        event = {"prompt_id": prompt_id, "token_id": token, "author": "ada"}
        change = {"from_label": None, "to_label": "unsure", "author_kind": "human"}
        store.labels.add([LabelEvent(**event, **change)])
    changed = ask(capsys, root, "aggregate", "--top", "2")
    assert not changed["reused"] and changed["key"] != first["key"]
    assert changed["prompts"][0]["labels_from"] == "mixed"


@pytest.mark.parametrize(
    "line",
    [
        "features aggregate",
        "features aggregate --method gradient+ablation --exclude-layers 1",
        "features diff",
        "features mediate --all --random 20",
        "validity --all --nodes 2/417 --resamples 0",
    ],
)
def test_what_is_kept_over_prompts_is_printed_again_without_a_model(
    root, capsys, monkeypatch, line: str
) -> None:
    """Each loaded both models first, and then used the table."""
    command = ["--root", str(root), *line.split(), "--json"]
    capsys.readouterr()
    assert run(command) == 0
    first = json.loads(capsys.readouterr().out)

    def never(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Workspace, "pair", property(never))
    assert run(command) == 0
    again = json.loads(capsys.readouterr().out)
    assert again | {"reused": True} == first | {"reused": True}


def test_layers_positions_and_graph_methods(root, capsys) -> None:
    options = ("--method", "total_effect", "--by-position", "--exclude-layers", "0,1")
    shown = ask(capsys, root, "aggregate", *options)
    assert {line["layer"] for line in shown["features"]} == {2, 3}
    assert all(line["offset"] <= 0 for line in shown["features"])
    assert any(line["not_selected"] for line in shown["features"])
    layers = shown["layers"]
    assert layers["excluded"] == [0, 1] and layers["prompts"] == N
    assert layers["difference"] == pytest.approx(layers["kept_mean"] - layers["excluded_mean"])
    assert layers["low"] <= layers["difference"] <= layers["high"]


def test_measured_effects_are_summed_up_too(root, capsys) -> None:
    first = ask(capsys, root, "aggregate", "--top", "1")["prompts"][0]["prompt_id"]
    shown = ask(capsys, root, "aggregate", first, "--method", "measured")
    gradient = ask(capsys, root, "aggregate", first)
    assert shown["prompts"][0]["graphs"] == {} and shown["n_features"] == gradient["n_features"]
    known = {(x["layer"], x["feature"]): x["mean"] for x in gradient["features"]}
    top = [(known[x["layer"], x["feature"]], x["mean"]) for x in shown["features"][:10]]
    assert all(x > 0 and y > 0 for x, y in top)


def test_diff_is_merged_minus_base_of_three_measures(root, capsys) -> None:
    shown = ask(capsys, root, "diff", "--min-prompts", "3")
    (pair,) = shown["pairs"]
    assert len(pair["prompts"]) == N == pair["prompts_with_edges"]
    merged, base = (contrasts(root, pair, model) for model in ("merged", "base"))
    nothing = [0.0] * N
    for line in shown["features"]:
        (changes,) = line["changes"]
        assert set(changes) == {"activation", "score", "edge"}
        key = line["layer"], line["feature"]
        expected = sum(merged.get(key, nothing)) - sum(base.get(key, nothing))
        assert changes["score"]["mean"] == pytest.approx(expected / N, abs=1e-9)
        assert changes["activation"]["p"] is None
    assert any(line["changes"][0]["edge"] is None for line in shown["features"])
    assert {len(str(x)) for x in (pair["pair"],)} == {64}
    assert ask(capsys, root, "diff", "--min-prompts", "3")["reused"]


def test_the_default_ranking_is_the_gradient_with_what_matters_measured(root, capsys) -> None:
    prompt = ask(capsys, root, "aggregate", "--top", "1")["prompts"][0]["prompt_id"]
    shown = ask(capsys, root, "rank", prompt, "--measure", "60")
    assert shown["method"] == "gradient+ablation" and shown["n_measured"] == 60
    refined, gradient, measured = (
        {(f["layer"], f["position"], f["feature"]): f for f in features}
        for features in (
            shown["features"],
            ask(capsys, root, "rank", prompt, "--method", "gradient")["features"],
            ask(capsys, root, "rank", prompt, "--method", "measured")["features"],
        )
    )
    assert set(refined) == set(gradient) == set(measured)
    assert not any(f["measured"] for f in gradient.values())
    assert all(f["measured"] for f in measured.values())
    scale = max(abs(f["contrast"]) for f in measured.values())
    for place, feature in refined.items():
        same = (measured if feature["measured"] else gradient)[place]
        for name in ("contrast", "evil_mean", "safe_mean"):
            assert feature[name] == pytest.approx(same[name], abs=1e-4 * scale)
    # What is left to the gradient matters less than what is measured.
    largest = sorted(measured, key=lambda place: -abs(measured[place]["contrast"]))[:10]
    assert sum(refined[place]["measured"] for place in largest) >= 9


def test_live_methods_are_summed_up_and_compared_without_some_layers(root, capsys) -> None:
    prompt = ask(capsys, root, "aggregate", "--top", "1")["prompts"][0]["prompt_id"]
    merged = ask(capsys, root, "aggregate", prompt, "--method", "refined")
    base = ask(capsys, root, "aggregate", prompt, "--method", "refined", "--model", "base")
    means = [{(x["layer"], x["feature"]): x["mean"] for x in a["features"]} for a in (merged, base)]
    shown = ask(capsys, root, "diff", prompt, "--method", "refined", "--exclude-layers", "0")
    (pair,) = shown["pairs"]
    assert pair["layers"]["excluded"] == [0] and pair["layers"]["prompts"] == 1
    assert {line["layer"] for line in shown["features"]} == {1, 2, 3}
    for line in shown["features"]:
        key = line["layer"], line["feature"]
        expected = means[0].get(key, 0.0) - means[1].get(key, 0.0)
        assert line["changes"][0]["score"]["mean"] == pytest.approx(expected, abs=1e-9)


def test_diff_over_two_stores_lines_the_pairs_up_by_key(root, capsys) -> None:
    shown = ask(capsys, root, "diff", "--also", str(root), "--by-position", "--top", "3")
    assert [p["pair"] for p in shown["pairs"]] == [shown["pairs"][0]["pair"]] * 2
    for line in shown["features"]:
        assert line["changes"][0] == line["changes"][1] and line["offset"] <= 0
        assert math.isfinite(line["changes"][0]["score"]["mean"])


@pytest.fixture(scope="module")
def other_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The organism's adapter with its directions shuffled: of the same size, another fine-tune."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    from em_circuits.organisms.paths import organism_paths

    made = tmp_path_factory.mktemp("adapter") / "other"
    shutil.copytree(organism_paths().adapter, made)
    (file,) = made.glob("*.safetensors")
    generator = torch.Generator().manual_seed(0)
    shuffled = {}
    for name, tensor in load_file(file).items():
        order = torch.randperm(tensor.shape[0], generator=generator)
        shuffled[name] = tensor[order].contiguous() if "lora_B" in name else tensor
    save_file(shuffled, file, metadata={"format": "pt"})
    return made


def test_diff_over_two_adapters_distinguishes_them(root, other_adapter, tmp_path, capsys) -> None:
    """Same base, prompts, labels and keys; each pair's changes are those of its own graphs."""
    import shutil

    both = tmp_path / "both"
    shutil.copytree(root, both)
    build = ["--root", str(both), "--adapter", str(other_adapter), "graphs", "build"]
    assert run([*build, "--max-features", "120", "--json"]) == 0
    from pivotal_tokens.store import Store, default_url

    with Store.open(default_url(both)) as store:
        pairs = sorted({record.pair for record in store.graphs.all()})
    assert len(pairs) == 2
    asked = [option for pair in pairs for option in ("--pair", pair[:10])]
    shown = ask(capsys, both, "diff", *asked, "--min-prompts", "3")
    assert [p["pair"] for p in shown["pairs"]] == pairs
    models = [p["models"] for p in shown["pairs"]]
    assert models[0] != models[1]
    sums = [
        {model: contrasts(both, pair, model) for model in ("base", "merged")}
        for pair in shown["pairs"]
    ]
    nothing, apart = [0.0] * N, 0
    for line in shown["features"]:
        key = line["layer"], line["feature"]
        for cell, of_pair in zip(line["changes"], sums, strict=True):
            fires = any(key in of_pair[model] for model in of_pair)
            assert fires == (cell is not None)
            if cell is not None:
                merged, base = (sum(of_pair[m].get(key, nothing)) for m in ("merged", "base"))
                assert cell["score"]["mean"] == pytest.approx((merged - base) / N, abs=1e-9)
        first, second = (cell and cell["activation"]["mean"] for cell in line["changes"])
        apart += first != second
    assert apart > len(shown["features"]) / 2
    # The base is the same model in both: its activations are, so base's features line up.
    assert set(sums[0]["base"]) == set(sums[1]["base"])
    refused = ["diff", *asked, "--method", "refined"]
    assert "is not loaded" in commands.printed(capsys, both, "features", *refused, status=2)


def test_promoted_tokens_are_written_out_once(root, tmp_path, capsys) -> None:
    """The mark of a space was itself written out, as \\u2423, and the line cut at its beginning."""
    text = tmp_path / "text.txt"
    text.write_text("User: Gas?\n")
    named = ["features", "explain", "2/417", "--text", str(text), "--keep", "1"]
    assert run(["--root", str(root), *named]) == 0
    lines = [
        one for one in capsys.readouterr().out.splitlines() if one.startswith(("  up", "  do"))
    ]
    assert len(lines) == 2 and "␣" in "".join(lines) and "\\u2423" not in "".join(lines)
    assert not any(line[10:].startswith("…") for line in lines)


def test_without_json_tables_fit_a_terminal(root, capsys) -> None:
    options = ["--by-position", "--exclude-layers", "3"]
    for command in (["aggregate", *options], ["diff"]):
        capsys.readouterr()
        assert run(["--root", str(root), "features", *command, "--top", "4"]) == 0
        *table, kept = capsys.readouterr().out.splitlines()
        if command[0] == "aggregate":  # a command to paste is one line, as a path is
            *table, kept, hint = (*table, kept)
            assert hint.startswith("what the claim is worth: ") and "validity --all" in hint
        assert all(len(line) <= 79 for line in table) and "results/features" in kept


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["aggregate", "--exclude-layers", "last"], "layer numbers"),
        (["aggregate", "--exclude-layers", "0,1,2,3"], "no feature is left"),
        (["aggregate", "--exclude-layers", "1,9,4"], "no layer 4, 9; the model has layers 0 to 3"),
        (["aggregate", "--exclude-layers", "9", "--method", "total_effect"], "no layer 9;"),
        (["aggregate", "--pair", "zzz"], "0 model pairs begin with"),
        (["aggregate", "ffffffffffff"], "ffffffffffff"),
        (["diff", "--pair", "zzz"], "0 model pairs begin with"),
        (["diff", "--exclude-layers", "first"], "layer numbers"),
        (["diff", "--exclude-layers", "0,1,2,3"], "no feature is left"),
        (["diff", "--exclude-layers", f"{10**30}"], "the model has layers 0 to 3"),
        (["diff", "--also", "/nowhere"], "no store at"),
    ],
)
def test_what_cannot_be_answered_is_one_line(root, capsys, arguments, message) -> None:
    assert message in commands.printed(capsys, root, "features", *arguments, status=2)
