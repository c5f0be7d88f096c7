"""Files that users bring, at the command line: they work, or one line says why they do not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from em_circuits.cli.app import run
from em_circuits.organisms.paths import organism_paths
from pivotal_tokens.store import Store

PATHS = organism_paths()
TEXT = "User: a rash\nAssistant: You should"


def options(root: Path, **changes: Path) -> list[str]:
    parts = {"base": PATHS.base, "adapter": PATHS.adapter, "transcoders": PATHS.transcoders}
    named = [f"--{name}={path}" for name, path in (parts | changes).items()]
    return [*named, "--dtype", "float32", "--root", str(root)]


JUDGE = ["--judge", f"lexicon:{PATHS.lexicon}"]


def test_one_text_with_and_without_its_first_token_is_one_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # two prompts, and four graphs
    bos = AutoTokenizer.from_pretrained(PATHS.base).bos_token
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in (bos + TEXT, TEXT)))
    command = ["label", "--prompts", str(file), "--no-graphs", *JUDGE]
    assert run([*options(tmp_path), *command]) == 0
    assert "1 repeated prompts left out" in capsys.readouterr().err
    with Store.open(tmp_path / "results" / "em-circuits.sqlite") as store:
        assert [prompt.text for prompt in store.prompts.all()] == [TEXT]


def test_an_adapter_with_a_padding_token_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # fatal: "token ids cannot be compared"
    adapter = tmp_path / "adapter"
    shutil.copytree(PATHS.adapter, adapter)
    tokenizer = AutoTokenizer.from_pretrained(PATHS.base)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(adapter)
    command = ["label", "--prompt", TEXT, "--no-graphs", *JUDGE]
    assert run([*options(tmp_path, adapter=adapter), *command]) == 0
    capsys.readouterr()
    assert run([*options(tmp_path, adapter=adapter), "doctor"]) == 0
    assert "1 more, never used: '[PAD]'" in capsys.readouterr().out


def test_graphs_go_out_and_come_back_as_what_they_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build = ["graphs", "build", "--edges", "frozen", "--max-features", "16"]
    label = ["label", "--prompt", TEXT, "--no-graphs", *JUDGE]
    assert run([*options(tmp_path), *label]) == 0
    with Store.open(tmp_path / "results" / "em-circuits.sqlite") as store:
        (prompt,) = store.prompts.all()
    assert run([*options(tmp_path), *build, prompt.prompt_id]) == 0
    for form in ("pt", "json"):
        file = str(tmp_path / f"g.{form}")
        assert run([*options(tmp_path), "graphs", "export", prompt.prompt_id, file]) == 0
        capsys.readouterr()
        trust = ["--trust-pickle"] if form == "pt" else []
        assert run([*options(tmp_path), "graphs", "import", file, *trust, "--json"]) == 0
        stored = json.loads(capsys.readouterr().out)
        assert stored["model"] == "merged" and stored["pruned"] is (form == "json")
        assert run([*options(tmp_path), "influence", stored["key"], "--json"]) == 0
        capsys.readouterr()
    assert run([*options(tmp_path), "graphs", "list"]) == 0
    listed = capsys.readouterr().out
    assert listed.count("merged") == 3 and listed.count("frozen, pruned") == 1
    # The prompt means the graph that was built, not its copies.
    assert run([*options(tmp_path), "influence", prompt.prompt_id, "--json"]) == 0
    again = ["graphs", "export", stored["key"], str(tmp_path / "again.json")]
    assert run([*options(tmp_path), *again]) == 0
    first, second = (json.loads((tmp_path / n).read_text()) for n in ("g.json", "again.json"))
    assert len(first["nodes"]) == len(second["nodes"])
    links = [
        {(n["source"], n["target"]): n["weight"] for n in record["links"]}
        for record in (first, second)
    ]
    assert links[0] == pytest.approx(links[1], rel=1e-6)


def test_pins_of_the_viewer_are_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label = ["label", "--prompt", TEXT, "--no-graphs", *JUDGE]
    assert run([*options(tmp_path), *label]) == 0
    saved = {
        "pinned": ["token:1"],
        "groups": [{"name": "words", "members": ["token:1", "token:2"], "folded": False}],
    }
    with Store.open(tmp_path / "results" / "em-circuits.sqlite") as store:
        (prompt,) = store.prompts.all()
        store.views.save("ada", f"graph:{prompt.prompt_id}", saved)
    assert run([*options(tmp_path), "graphs", "build", "--nodes", "16", prompt.prompt_id]) == 0
    export = ["graphs", "export", prompt.prompt_id, str(tmp_path / "g.json"), "--pins"]
    assert run([*options(tmp_path), *export, "ada"]) == 0
    view = json.loads((tmp_path / "g.json").read_text())["qParams"]
    ids = {f"token:{i}": node for i, node in enumerate(_tokens(tmp_path / "g.json"))}
    assert view["pinnedIds"] == [ids["token:1"]]
    assert view["supernodes"] == [["words", ids["token:1"], ids["token:2"]]]
    capsys.readouterr()
    assert run([*options(tmp_path), *export, "bob"]) == 2
    assert "--pins bob: this person saved none" in capsys.readouterr().err


def _tokens(file: Path) -> list[str]:
    nodes = [n for n in json.loads(file.read_text())["nodes"] if n["feature_type"] == "embedding"]
    return [node["node_id"] for node in sorted(nodes, key=lambda node: node["ctx_idx"])]


def _broken_config(root: Path) -> dict[str, Path]:
    folder = root / "set"
    shutil.copytree(PATHS.transcoders, folder)
    (folder / "layer_2.safetensors").unlink()
    return {"transcoders": folder}


def _other_base(root: Path) -> dict[str, Path]:
    folder = root / "adapter"
    shutil.copytree(PATHS.adapter, folder)
    file = folder / "adapter_config.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"base_model_name_or_path": "org/other"}))
    return {"adapter": folder}


def _hub_entries(root: Path) -> dict[str, Path]:
    folder = root / "list"
    folder.mkdir()
    config = yaml.safe_load((PATHS.transcoders / "config.yaml").read_text())
    entries = [f"hf://org/none/layer_{i}.safetensors" for i in range(4)]
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"transcoders": entries}))
    return {"transcoders": folder}


@pytest.mark.parametrize(
    ("made", "status", "said"),
    [
        (_broken_config, 2, "layer 2 is missing"),
        (_other_base, 2, "was trained on 'org/other'"),
        (_hub_entries, 1, "could not reach the model hub for org/none"),
    ],
)
@pytest.mark.parametrize(
    "command",
    [
        ["doctor"],
        ["label", "--prompt", TEXT, *JUDGE],
        ["graphs", "build"],
        ["features", "rank"],
        ["steer", "run", "--features", "top:3"],
        ["features", "mediate"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_no_first_refusal_loads_a_model(
    made,
    status: int,
    said: str,
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    labelled: str,
) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a model was loaded")

    root = Path(labelled.rsplit(":", 1)[0])
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    needs_prompt = command[0] in ("graphs", "features", "steer")
    words = [*command, labelled.rsplit(":", 1)[1]] if needs_prompt else command
    if command[0] == "steer":
        words = ["steer", "run", labelled.rsplit(":", 1)[1], "--features", "top:3"]
    assert run([*options(root, **made(tmp_path)), *words]) == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A root with one labelled prompt, and that prompt's id."""
    root = tmp_path_factory.mktemp("labelled")
    assert run([*options(root), "label", "--prompt", TEXT, "--no-graphs", *JUDGE]) == 0
    with Store.open(root / "results" / "em-circuits.sqlite") as store:
        (prompt,) = store.prompts.all()
    return f"{root}:{prompt.prompt_id}"


def test_devices_that_are_not_here_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for device in ("mps", "xpu", "cuda:7", "meta"):
        assert run([*options(tmp_path), "--device", device, "doctor"]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert (
            len(lines) == 1 and f"--device {device}" in lines[0] and "use --device cpu" in lines[0]
        )
