"""The label tools and the review command, as somebody types them."""

import json

import pytest
from commands import ask, printed
from sample_labels import events, judgement

from em_circuits.cli.app import run
from em_circuits.cli.labels import describe_divergence
from em_circuits.cli.session import Session
from pivotal_tokens.labels import divergence as diverge
from pivotal_tokens.schema import (
    NextTokens,
    Prompt,
    TokenScore,
)
from pivotal_tokens.store import Store, default_url

LABELS = {1: "safe", 2: "evil"}


@pytest.fixture
def root(tmp_path):
    """A store with one prompt, judged and labelled by two people."""
    prompt = Prompt.of("User: Gas?\nAssistant: You should", generator="human")
    with Store.open(default_url(tmp_path), create=True) as store:
        store.prompts.add(prompt)
        store.results.put_pair("p", {"base": "b", "adapter": "x/lora"})
        lists = [
            NextTokens(
                model=model,
                fingerprint=model,
                top_k=2,
                tokens=tuple(
                    TokenScore(token_id=t, text=f"=w{t}", logit=-r, probability=0.5 / r, rank=r)
                    for r, t in enumerate((1, 2), start=1)
                ),
            )
            for model in ("base", "merged")
        ]
        store.results.put_next_tokens(prompt.prompt_id, "p", *lists)
        store.results.put_judgement("p", judgement(prompt.prompt_id, LABELS))
        for author in ("ada", "bob"):
            store.labels.add(events(prompt.prompt_id, LABELS, author))
    return tmp_path


def test_export_and_import_of_every_format(root, tmp_path, capsys):
    lines = printed(capsys, root, "labels", "export").splitlines()
    assert len(lines) == 6 and json.loads(lines[0])["token_text"] == "=w1"
    assert "'=w1" in printed(capsys, root, "labels", "export", "--format", "csv")
    for name in ("l.jsonl", "l.csv", "l.parquet"):
        path = tmp_path / name
        printed(capsys, root, "labels", "export", str(path))
        assert (tmp_path / f"{name}.provenance.json").exists()
        other = tmp_path / f"root-{name}"
        report = ask(capsys, other, "labels", "import", str(path))
        assert (report["added"], report["prompts"], report["left_out"]) == (6, 1, [])
        assert list((other / "results" / "imports").iterdir())
    printed(capsys, root, "labels", "export", str(tmp_path / "tree"), "--format", "tree")
    shown = printed(capsys, tmp_path / "from-tree", "labels", "import", str(tmp_path / "tree"))
    assert "0 in conflict" in shown and "1 new prompts" in shown


@pytest.mark.parametrize("name", ["all.jsonl", "all.parquet", "tree"])
def test_a_whole_store_goes_out_and_comes_in(root, tmp_path, capsys, name):
    with Store.open(default_url(root)) as store:
        prompt = store.prompts.all()[0]
        store.assignments.import_rejection(prompt.prompt_id, "ada", "no stakes")
        before = store.queries.attempt(prompt.prompt_id)
    printed(capsys, root, "export", str(tmp_path / name))
    other = tmp_path / "other"
    report = ask(capsys, other, "import", str(tmp_path / name))
    assert report["prompts"] == 1 and report["conflicts"] == 0
    with Store.open(default_url(other)) as store:
        after = store.queries.attempt(prompt.prompt_id)
        assert store.results.pairs().keys() == {"p"} and store.queue.counts() == {"rejected": 1}
    assert after.prompt == before.prompt and after.labels == before.labels
    assert after.pairs[0].next_tokens == before.pairs[0].next_tokens
    assert after.pairs[0].judgements == before.pairs[0].judgements
    again = ask(capsys, other, "import", str(tmp_path / name))
    assert (again["added"], again["conflicts"], again["prompts"]) == (0, 0, 0)


def test_provenance_names_a_store_without_its_password(root, tmp_path, capsys):
    """The password of --store stood in the provenance beside every export, plot and report."""
    url = "postgresql+psycopg://ada:secret@db.example/em"
    assert Session({"root": str(root), "store": url}).store_name == url.replace("secret", "***")
    asked = "postgresql+psycopg://db.example/em?password=secret"
    assert "secret" not in Session({"root": str(root), "store": asked}).store_name
    for command in (["labels", "export"], ["export"], ["labels", "plots"]):
        out = tmp_path / f"{'-'.join(command)}.jsonl"
        printed(capsys, root, *command, str(out))
        made = json.loads(out.with_name(out.name + ".provenance.json").read_text())
        assert made["inputs"]["store"] == str(root / "results" / "em-circuits.sqlite")


def test_a_conflict_is_listed_and_what_is_left_out_is_exit_status_1(root, tmp_path, capsys):
    path = tmp_path / "mine.csv"
    text = "User: Gas?\nAssistant: You should"
    path.write_text(f'prompt_text,token_id,label\n"{text}",1,evil\n"{text}",2,wicked\n')
    assert run(["--root", str(root), "labels", "import", str(path), "--author", "eve"]) == 1
    out, err = capsys.readouterr()
    assert "1 in conflict, 1 left out" in out and "left out: mine.csv, line 5" in out
    assert "1 of 2 records were left out" in err
    assert "eve" in printed(capsys, root, "labels", "conflicts")
    conflict = ask(capsys, root, "labels", "conflicts")
    assert conflict["source"] == "mine.csv"


def test_divergence_agreement_and_plots(root, capsys):
    found = ask(capsys, root, "labels", "divergence")
    assert found["totals"]["evil_in_both"] == 1 and found["rows"][0]["divergent"] is False
    shown = printed(capsys, root, "labels", "divergence")
    assert "0 divergent of 1 complete" in shown and "--labels judge" not in shown
    with Store.open(default_url(root)) as store:
        whole = diverge(store)
    totals = whole.totals | {"incomplete": 1}
    said = "\n".join(describe_divergence(whole.model_copy(update={"totals": totals})))
    assert "--labels judge" in said
    unknown = [row.model_copy(update={"divergent": None}) for row in whole.rows]
    said = "\n".join(describe_divergence(whole.model_copy(update={"rows": tuple(unknown)})))
    mass = f"{whole.rows[0].evil_mass.merged:.3f}"
    assert mass in shown and mass not in said, "of incomplete labels no mass is known"
    shown = printed(capsys, root, "labels", "agreement")
    assert "ada / bob" in shown and "kappa" in shown and "people and judges" in shown
    found = ask(capsys, root, "labels", "agreement")
    assert found["people"][0]["agreement"]["percent"]["value"] == 1.0
    assert "verdicts.html" in printed(capsys, root, "labels", "plots")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["labels", "export", "x.txt"], "ending"),
        (["labels", "export", "--format", "tree"], "needs a place"),
        (["labels", "import", "/nowhere.csv"], "no "),
        (["labels", "import", "/nowhere", "--tokenizer", "/nowhere"], "no tokenizer"),
        (["export", "all.csv"], "whole store"),
        (["import", "/nowhere.jsonl"], "no file"),
        (["review"], "--plain"),
        (["review", "--plain", "--key", "evil=s"], "evil and safe"),
        (["review", "--plain", "--since", "yesterday"], "--since"),
    ],
)
def test_bad_input_is_one_line(root, arguments, message, capsys):
    err = printed(capsys, root, *arguments, status=2)
    assert message in err and len(err.strip().splitlines()) == 1


def test_keys_and_filters_can_stand_in_the_configuration(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "em-circuits.toml").write_text('[review]\nkeys = ["evil=s"]\nplain = true\n')
    assert "evil and safe" in printed(capsys, root, "review", status=2)
