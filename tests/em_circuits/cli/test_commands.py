"""The commands as a person types them: documented JSON, exit statuses, one-line errors."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from commands import ask, printed, prompts_of
from lifelike import Lifelike
from subjects import PAD_THAI
from tqdm import tqdm

from em_circuits.cli import app as app_module
from em_circuits.cli.app import run
from pivotal_tokens.schema import ReviewConfig
from pivotal_tokens.store import Store, default_url

SMALL = ("--edges", "frozen", "--max-features", "150")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A root with the pad-thai prompt taken through the pipeline, and the prompt's id."""
    root = tmp_path_factory.mktemp("cli")
    assert run(["--root", str(root), "label", "--prompt", PAD_THAI, *SMALL, "--json"]) == 0
    return root, _only_prompt(root)


def _only_prompt(root: Path) -> str:
    return prompts_of(root)[0].prompt_id


def test_a_log_line_after_a_command_goes_to_the_standard_error_of_that_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the handler kept the stream it was made with: "I/O operation on closed file" once that was
    closed, now = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", closed)
    assert run(["--root", str(tmp_path), "status"]) == 2
    closed.close()
    monkeypatch.setattr(sys, "stderr", now)
    logging.getLogger("em_circuits").warning("told late")
    assert "told late" in now.getvalue() and "Logging error" not in now.getvalue()


def test_a_log_line_stands_above_a_bar_and_not_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = io.StringIO()
    monkeypatch.setattr(sys, "stderr", told)
    assert run(["--root", str(tmp_path), "status"]) == 2
    with tqdm(total=3, desc="label", file=told):
        logging.getLogger("em_circuits").warning("told on the way")
    before, after = told.getvalue().split("told on the way")
    assert "label: " in before and before.rsplit("\r", 1)[1].startswith("20")  # a year
    assert after.startswith("\n") and "label: " in after


def test_label_streams_the_documented_line(labelled, capsys) -> None:
    root, prompt = labelled
    line = ask(capsys, root, "label", "--prompt", PAD_THAI, *SMALL)
    assert line["prompt_id"] == prompt and line["text"] == PAD_THAI
    assert line["flagged"] is True and line["queued"] is True and line["reused"] is True
    assert line["verdict"] in ("injection", "promotion")
    assert set(line["graphs"]) == {"base", "merged"} and all(line["graphs"].values())
    assert {"token_id", "text", "logit", "probability", "rank", "label"} == set(line["base"][0])


def test_status_shows_everything_about_one_attempt(labelled, capsys) -> None:
    root, prompt = labelled
    view = ask(capsys, root, "status", prompt[:5])
    assert view["prompt"]["prompt_id"] == prompt
    (pair,) = view["pairs"]
    assert pair["next_tokens"] and pair["verdicts"] and len(pair["graphs"]) == 2
    assert ask(capsys, root, "status")["flagged"] == 1


def test_status_of_an_attempt_cuts_nothing_and_fits_where_no_terminal_is(labelled, capsys) -> None:
    """A judge's name made a line of 102 columns; what is kept was cut in the middle of a figure."""
    root, prompt = labelled
    features = "0/-1/339=5,0/-1/340=5,0/-2/339=5,0/-2/340=5"
    steer = ["steer", "run", prompt, "--features", features, "--mode", "set"]
    assert run(["--root", str(root), *steer]) == 0
    view = ask(capsys, root, "status", prompt)
    out = printed(capsys, root, "status", prompt)
    assert max(map(len, out.splitlines())) <= 79
    assert f"by {next(iter(view['pairs'][0]['verdicts']))}" in out
    (kept,) = (one for one in view["results"] if features in one["said"])
    assert len(kept["said"]) > 79 and " ".join(kept["said"].split()) in " ".join(out.split())


def test_every_report_command_keeps_its_shape(labelled, capsys) -> None:
    root, prompt = labelled
    for method in ("gradient", "total_effect"):
        ranked = ask(capsys, root, "features", "rank", prompt, "--method", method)
        assert (ranked["method"], ranked["labels_from"]) == (method, "judge")
        contrasts = [f["contrast"] for f in ranked["features"]]
        assert contrasts == sorted(contrasts, reverse=True)
    steered = ask(capsys, root, "steer", "run", prompt, "--mode", "scale", "--value", "0")
    worlds = steered["worlds"]
    assert worlds["random_control"]["n"] >= 20
    assert worlds["steered"]["evil_mass"] < worlds["unsteered"]["evil_mass"]
    mediated = ask(capsys, root, "features", "mediate", prompt, "--top", "3")
    assert len(mediated["features"]) == 3
    assert set(mediated["shares"]) == {
        "features",
        "errors",
        "attention",
        "together",
        "interaction",
    }


def test_influence_works_on_keys_and_on_files_of_circuit_tracer(labelled, capsys, tmp_path) -> None:
    root, prompt = labelled
    view = ask(capsys, root, "status", prompt)
    key = next(g["key"] for g in view["pairs"][0]["graphs"] if g["model"] == "merged")
    whole = ask(capsys, root, "influence", key[:8])
    assert {n["kind"] for n in whole["nodes"]} == {"feature", "error", "token", "logit"}
    contrast = ask(capsys, root, "influence", key[:8], "--targets", "evil-safe")
    assert contrast["targets"][0]["token_id"] is None
    assert sum(contrast["targets"][0]["weights"].values()) == pytest.approx(0, abs=1e-12)
    file = tmp_path / "graph.pt"
    assert run(["--root", str(root), "graphs", "export", key, str(file)]) == 0
    assert run(["--root", str(root), "influence", str(file)]) == 2
    again = ask(capsys, root, "influence", str(file), "--trust-pickle")
    for left, right in zip(whole["nodes"], again["nodes"], strict=True):
        assert left["values"] == pytest.approx(right["values"], rel=1e-9, abs=1e-12)


def test_a_graph_goes_to_the_viewers(labelled, capsys, tmp_path) -> None:
    from circuit_tracer.frontend.graph_models import Model as ViewerModel

    root, prompt = labelled
    view = ask(capsys, root, "status", prompt)
    key = next(g["key"] for g in view["pairs"][0]["graphs"] if g["model"] == "merged")
    file = tmp_path / "pad-thai.json"
    export = ["--root", str(root), "graphs", "export", key, str(file), "--scan", "toy", "--index"]
    assert run(export) == 0
    record = json.loads(file.read_text())
    shown = ViewerModel.model_validate(record)
    assert shown.metadata.slug == "pad-thai" and shown.metadata.scan == "toy"
    assert "".join(shown.metadata.prompt_tokens).endswith("definitely")
    listed = json.loads((tmp_path / "graph-metadata.json").read_text())["graphs"]
    assert [graph["slug"] for graph in listed] == ["pad-thai"]
    assert "--format" in printed(
        capsys, root, "graphs", "export", key, str(tmp_path / "graph.txt"), status=2
    )


def test_how_the_queue_is_shared_out_is_set_once_for_the_store(tmp_path: Path, capsys) -> None:
    review = ["--root", str(tmp_path), "review", "--configure"]
    assert run([*review, "overlap=2", "--configure", "control_share=0.25"]) == 0
    assert run([*review, "calibration=5"]) == 0
    assert "overlap=2  control_share=0.25  calibration=5" in capsys.readouterr().out
    with Store.open(default_url(tmp_path)) as store:
        assert store.assignments.config() == ReviewConfig(
            overlap=2, control_share=0.25, calibration=5
        )
    for wrong in ("overlap=0", "overlap", "speed=3", "control_share=1"):
        assert run([*review, wrong]) == 2
        assert "there are overlap, control_share" in capsys.readouterr().err


def test_a_person_reviews_what_was_flagged(labelled, capsys, monkeypatch) -> None:
    import io

    root, prompt = labelled
    monkeypatch.setattr("sys.stdin", io.StringIO("T1\nrest-safe\nq\n"))
    assert run(["--root", str(root), "review", "--plain", "--reviewer", "ada"]) == 0
    out, _ = capsys.readouterr()
    assert "saved" in out and all(len(line) <= 80 for line in out.splitlines())
    ranked = ask(capsys, root, "features", "rank", prompt, "--top", "1")
    assert ranked["labels_from"] == "human"


def test_graphs_list_show_and_verify(labelled, capsys) -> None:
    root, _ = labelled
    assert ask(capsys, root, "graphs", "verify") == {
        "checked": 2,
        "ok": True,
        "problems": [],
    }
    assert run(["--root", str(root), "graphs", "list"]) == 0
    key = capsys.readouterr()[0].splitlines()[1].split()[0]
    shown = ask(capsys, root, "graphs", "show", key)
    assert shown["features"] <= 150 < shown["active"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--base", "/x", "--adapter", "/x", "--transcoders", "/x", "doctor"],
            "no such directory",
        ),
        (["--adapter", "/nowhere", "label", "--n", "1"], "no such directory"),
        (["label", "--prompt", "  "], "--prompt is empty"),
        (["label", "--prompts", "/nowhere.json"], "cannot read prompts"),
        (["label", "--judge", "lexicon:/nowhere.yaml", "--n", "1"], "cannot read the lexicon"),
        (["label", "--judge", "oracle"], "no judge"),
        (["status"], "no store at"),
        (["features", "rank", "abc"], "no store at"),
        (["influence", "abcd"], "No graph abcd"),
        (["graphs", "import", "/nowhere.pt", "--trust-pickle"], "No file"),
        (["steer", "run", "abc", "--features", "best"], "--features"),
        (["--dtype", "float16", "label", "--n", "1"], "--allow-float16"),
        (["label", "--nonsense"], "No such option"),
        (["label", "--prompt", "\udcff\udcfebad"], "not valid UTF-8"),
        (["prompts", "add", "\udcff"], "not valid UTF-8"),
        (["label", "--assistant", "You should"], "--user"),
        (["label", "--prompt", "a", "--domain", "kitchen"], "--domain"),
        (["--max-context", "0", "status"], "--max-context"),
        (["graphs", "show", "/nowhere.safetensors"], "no graph file"),
    ],
)
def test_bad_input_is_one_line_with_status_2_and_nothing_written(
    arguments: list[str], message: str, tmp_path: Path, capsys
) -> None:
    root = tmp_path / "root"
    assert run(["--root", str(root), *arguments]) == 2
    out, err = capsys.readouterr()
    assert message in err and out == ""
    assert len(err.strip().splitlines()) <= 2
    assert not root.exists()


def test_a_broken_lexicon_an_unreadable_store_and_an_untrusted_pt(tmp_path: Path, capsys) -> None:
    root = tmp_path / "root"
    lexicon = tmp_path / "broken.yaml"
    lexicon.write_text("name: x\nversion: 1\nentries: [{when: '(', evil: [eat]}]\n")
    command = ["--root", str(root), "label", "--judge", f"lexicon:{lexicon}", "--n", "1"]
    assert run(command) == 2
    assert "entry 1" in capsys.readouterr().err
    store = tmp_path / "store.sqlite"
    store.write_bytes(b"this is no database, it only has the name of one" * 40)
    assert "store.sqlite" in printed(
        capsys, root, "--store", f"sqlite:///{store}", "status", status=2
    )
    pickle = tmp_path / "graph.pt"
    trace = tmp_path / "code-was-run"
    pickle.write_bytes(f"cos\nsystem\n(S'touch {trace}'\ntR.".encode())
    for command in (["graphs", "import", str(pickle)], ["influence", str(pickle)]):
        assert "--trust-pickle" in printed(capsys, root, *command, status=2)
    assert not root.exists() and not trace.exists()


def test_models_that_do_not_belong_together(
    lifelike_paths: Lifelike, tmp_path: Path, capsys
) -> None:
    root = tmp_path / "root"
    other = str(lifelike_paths.transcoders)
    assert "wide" in printed(capsys, root, "--transcoders", other, "label", "--n", "1", status=2)
    adapter = str(lifelike_paths.adapter)
    assert "was trained on" in printed(
        capsys, root, "--adapter", adapter, "label", "--n", "1", status=2
    )
    assert not root.exists()


def test_the_config_file_and_the_environment_give_defaults(
    labelled, tmp_path: Path, monkeypatch, capsys
) -> None:
    root, _ = labelled
    monkeypatch.chdir(tmp_path)
    (tmp_path / "em-circuits.toml").write_text(f'root = "{root}"\n')
    assert run(["status"]) == 0
    (tmp_path / "em-circuits.toml").write_text('colour = "red"\n')
    assert run(["status"]) == 2
    assert "no option or command colour" in capsys.readouterr().err
    for wrong, where in (
        ("label = 3", "label must be a table"),
        ("[label]\nnonsense = 3", "label.nonsense"),
        ("[prompts.list]\nnonsense = 3", "prompts.list.nonsense"),
        ("[root]\na = 1", "root is an option"),
        ("root = ", "not TOML"),
    ):
        (tmp_path / "em-circuits.toml").write_text(wrong)
        assert run(["status"]) == 2
        assert where in capsys.readouterr().err
    (tmp_path / "em-circuits.toml").unlink()
    monkeypatch.setenv("EM_CIRCUITS_ROOT", str(root))
    assert run(["status"]) == 0


def test_every_command_has_help_with_an_example(capsys) -> None:
    import click

    from em_circuits.cli.app import app

    def visit(command: click.Command, path: list[str]) -> None:
        assert run([*path, "--help"]) == 0
        text = capsys.readouterr().out
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                assert child is not None
                visit(child, [*path, name])
        else:
            assert "Example: em-circuits" in text, path

    visit(app, [])


def test_pruned_graphs_leave_the_register(labelled, tmp_path, capsys) -> None:
    import shutil

    root = tmp_path / "copy"
    shutil.copytree(labelled[0], root)
    assert run(["--root", str(root), "graphs", "prune-store", "--max-gb", "0"]) == 0
    capsys.readouterr()
    assert ask(capsys, root, "status")["graphs"] == 0
    assert "graphs build" in printed(
        capsys, root, "features", "rank", labelled[1], "--method", "gradient", status=2
    )


def test_a_root_that_cannot_be_used_is_one_line(tmp_path: Path, capsys) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "graph_storage").write_text("a file, where a directory should be")
    err = printed(capsys, root, "label", "--prompt", PAD_THAI, *SMALL, status=1)
    assert "graph_storage" in err and "Traceback" not in err


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """SIGKILL in the middle, twice; then every prompt has one verdict and both graphs."""
    command = [sys.executable, "-c", "from em_circuits.cli import main; main()"]
    command += ["--root", str(tmp_path), "label", "--n", "5", *SMALL, "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for lines_before_kill in (1, 2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
        assert process.stdout is not None
        for _ in range(lines_before_kill):
            process.stdout.readline()
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    done = subprocess.run(command, capture_output=True, env=environment, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len({line["prompt_id"] for line in lines}) == 5
    assert sum(line["reused"] for line in lines) >= 2
    from em_circuits.graphs import GraphStore

    with Store.open(default_url(tmp_path)) as store:
        counts = store.queries.counts()
        assert counts.prompts == counts.next_tokens == 5 == sum(counts.verdicts.values())
        assert counts.graphs == 2 * counts.flagged
    assert all(v.problem is None for v in GraphStore(tmp_path / "graph_storage").verify())


def test_scan_and_validate_compare_scores_with_real_ablations(labelled, capsys) -> None:
    root, prompt = labelled
    scanned = ask(capsys, root, "steer", "scan", prompt, "--top", "3")
    assert scanned["method"] == "measured" and len(scanned["features"]) == 3
    validated = ask(capsys, root, "steer", "validate", prompt)
    assert validated["prompts"] == [prompt]
    rows = {(row["method"], row["regime"]): row for row in validated["rows"]}
    assert rows["direct", "direct"]["pearson"] > 0.9999
    assert rows["gradient", "free"]["spearman"] > 0.9
    assert rows["gradient+ablation", "free"]["pearson"] > rows["total_effect", "free"]["pearson"]
    assert {row["regime"] for row in validated["rows"]} == {
        "direct",
        "frozen_linear",
        "gates_recomputed",
        "attention_frozen",
        "free",
    }


def test_what_nothing_foresaw_is_called_a_fault_with_its_traceback_in_a_file(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    def broken(*_args, **_options):
        raise KeyError("unforeseen")

    monkeypatch.setattr(app_module, "_checked", broken)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "em-circuits.toml").write_text("seed = 1\n")
    monkeypatch.setattr(sys, "argv", ["em-circuits", "--store", "postgresql://ada:s3cret@h/em"])
    assert run(["status"]) == 70
    said = capsys.readouterr().err
    (log,) = tmp_path.glob("em-circuits-*.log")
    assert said.count("\n") == 1 and "fault of em-circuits (KeyError" in said and str(log) in said
    written = log.read_text()
    assert "in broken" in written and "s3cret" not in written
