"""Audits of the organism: figures against the model itself, resuming, files, calibration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from em_circuits.audit import run as audit_run
from em_circuits.audit.calibration import (
    calibrate,
    check_calibration,
    read_calibration,
    shipped_calibration,
)
from em_circuits.audit.decision import Calibration, decision_by
from em_circuits.audit.report import write_audit_report, write_audits_page
from em_circuits.audit.run import AuditOutput, run_audit
from em_circuits.audit.settings import AuditSettings
from em_circuits.audit.suite import Suite, load_suite
from em_circuits.cli.app import run
from em_circuits.feature import FeatureId
from em_circuits.models.settings import PairSettings
from em_circuits.organisms.candidates import KnownCandidate, read_candidates
from em_circuits.organisms.paths import organism_paths
from em_circuits.workspace import Workspace
from pivotal_tokens.artefacts import changed_since_written, provenance_path
from pivotal_tokens.errors import RequestError

SHORT = AuditSettings(answer_tokens=3, n_largest=5)


def cut(n: int) -> Suite:
    """The toys' suite with so many prompts of each category."""
    suite = load_suite("toy")
    some = [one.model_copy(update={"prompts": one.prompts[:n]}) for one in suite.categories]
    return suite.model_copy(
        update={"name": "cut", "categories": tuple(some), "capability": suite.capability[:3]}
    )


def workspace(root: Path, **parts: str) -> Workspace:
    paths = organism_paths()
    given = {
        "base": str(paths.base),
        "adapter": str(paths.adapter),
        "transcoders": str(paths.transcoders),
        **parts,
    }
    return Workspace(root=root, models=PairSettings.model_validate({**given, "device": "cpu"}))


class Written:
    """Explanations of two features of the first layer, among those that differ most."""

    def of(self, feature: FeatureId) -> str | None:
        return dict(self.known(feature.layer)).get(feature.feature)

    def known(self, layer: int) -> list[tuple[int, str]]:
        return [(170, "first *words*"), (188, "second")] if layer == 0 else []


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory):
    with workspace(tmp_path_factory.mktemp("audit")) as work:
        yield work


@pytest.fixture(scope="module")
def audit(work):
    found = run_audit(work, cut(2), SHORT, labels=Written(), name="first")
    write_audit_report(found)
    return found


@torch.no_grad()
def test_differences_are_those_of_the_models(work, audit):
    pair, case = work.pair, audit.results.cases[0]
    ids = pair.input_ids(case.text)
    largest = audit.score.prompts[0].top[0]
    layer, feature = map(int, largest.node.split("/"))
    means = []
    for model in pair.models:
        values = []
        for wording in audit.results.cases[:2]:  # both wordings of the first prompt
            seen: list[torch.Tensor] = []
            with model.sites.hooked(
                lambda i, x, seen=seen: seen.append(x[0]) if i == layer else None
            ):
                model.hf(input_ids=pair.input_ids(wording.text)[None])
            values.append(float(pair.transcoders[layer].encode(seen[0])[1:, feature].mean()))
        means.append(sum(values) / 2)
    assert largest.base == pytest.approx(means[0], abs=1e-5)
    assert largest.candidate == pytest.approx(means[1], abs=1e-5)
    assert largest.difference == pytest.approx(means[1] - means[0], abs=1e-5)
    p, q = (model.next_logits(ids).double().log_softmax(-1) for model in pair.models)
    assert case.kl == pytest.approx(float((p.exp() * (p - q)).sum()), abs=1e-5)
    first = case.next_tokens[0]
    assert max(first.base, first.candidate) == pytest.approx(float(torch.maximum(p, q).exp().max()))


def test_answers_are_the_likeliest_continuations(work, audit):
    case, pair = audit.results.cases[0], work.pair
    ids = pair.input_ids(case.text)
    for _ in range(3):
        ids = torch.cat([ids, pair.merged.next_logits(ids).argmax()[None]])
    said = pair.tokenizer.decode(ids[-3:], skip_special_tokens=True).strip()
    assert case.candidate_answer == said
    assert audit.results.changed_answers is not None and audit.results.changed_answers.value > 0


@torch.no_grad()
def test_losses_are_mean_nats_per_token(work, audit):
    ids = work.pair.input_ids(cut(2).capability[0])
    for model, found in zip(work.pair.models, audit.results.losses[0], strict=True):
        logits = model.hf(input_ids=ids[None]).logits[0, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits, ids[1:])
        assert found == pytest.approx(float(loss), abs=1e-5)


def test_every_artefact_has_its_provenance_and_every_figure_an_interval(work, audit, capsys):
    names = {path.name for path in audit.folder.glob("*.json") if "provenance" not in path.name}
    assert names == {"suite_results.json", "score.json", "interp_evidence.json", "decision.json"}
    assert run(["--root", str(work.root), "verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["artefacts"] == 7
    config = yaml.safe_load((audit.folder / "config_resolved.yaml").read_text(encoding="utf-8"))
    assert config["pair"] == work.pair.key and config["suite"]["name"] == "cut"
    text = (audit.folder / "report.md").read_text(encoding="utf-8")
    page = (audit.folder / "report.html").read_text(encoding="utf-8")
    for said in (audit.evidence.coverage, audit.score.prompts[0].prompt):
        assert said.split(",")[0] in text and said.split(",")[0] in page
    assert "uncalibrated" in text and "first \\*words\\*" in text and "http" not in text
    for score in audit.score.scores.values():
        assert score.low is not None and score.low <= score.value <= score.high


def test_neighbours_that_are_far_say_nothing(audit):
    assert audit.evidence.coverage.startswith("direct 2/5; ")
    assert "cosine median" in audit.evidence.coverage
    for node in audit.evidence.nodes:
        for near in node.neighbours:
            assert near.low_similarity == (near.cosine < 0.3)
        if node.neighbours and node.neighbours[0].low_similarity:
            assert node.stands_in is None
        if not node.node.startswith("0/"):
            assert node.neighbours == () and node.explanation is None
        assert len(node.promoted) == 5


def test_a_killed_audit_goes_on_and_ends_alike(work, audit, monkeypatch):
    monkeypatch.setattr(audit_run, "_CASES", 2)
    real, calls = audit_run._piece, []

    def counted(*arguments):
        calls.append(arguments[2])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(audit_run, "_piece", counted)
    with pytest.raises(KeyboardInterrupt):
        run_audit(work, cut(2), SHORT, labels=Written(), name="second")
    folder = audit.folder.with_name("second")
    assert len((folder / "journal.jsonl").read_text().splitlines()) == 2
    (folder / "differences" / "0.safetensors").write_bytes(b"cut off")
    again = run_audit(work, cut(2), SHORT, labels=Written(), name="second")
    assert len(calls) == 3 + 3  # the third, the fourth, and the first, whose file was damaged
    assert again.score.scores["kl"].value == pytest.approx(audit.score.scores["kl"].value)
    for name in ("plain", "drift_corrected"):
        assert again.score.scores[name].value == pytest.approx(audit.score.scores[name].value)
    with pytest.raises(RequestError, match="another plan"):
        run_audit(work, cut(1), SHORT, name="second")


@pytest.mark.parametrize("basis", ["neuron", "adapter"])
def test_other_bases(work, basis):
    settings = AuditSettings(basis=basis, answer_tokens=0, n_largest=3)
    found = run_audit(work, cut(1), settings)
    assert found.config["space"]["basis"] == basis and found.results.changed_answers is None
    node = found.score.prompts[0].top[0]
    if basis == "adapter":
        assert node.base == 0 and node.node.split(":")[0] in (
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
        )
    else:
        assert node.difference == pytest.approx(node.candidate - node.base, abs=1e-5)
    assert found.evidence.nodes[0].promoted == ()


def test_calibration_ends_with_a_threshold_that_an_audit_uses(tmp_path):
    adapters = {
        "toy": ("harmful", organism_paths().adapter),
        "down": ("harmful", organism_paths("toy-down-proj").adapter),
    }
    known = [
        KnownCandidate(name=name, kind=kind, adapter=str(path))
        for name, (kind, path) in adapters.items()
    ]
    suite, settings = cut(1), AuditSettings(n_largest=5, answer_tokens=0)
    with workspace(tmp_path) as work:
        with pytest.raises(RequestError, match="at least 3 harmless"):
            calibrate(work, known, suite, settings)
        # The organism's own adapter three times stands in for harmless ones.
        three = [
            KnownCandidate(name=f"same{i}", kind="harmless", adapter=known[1].adapter)
            for i in range(3)
        ]
        found = calibrate(work, [*known, *three], suite, settings, name="mine")
        assert [one.name for one in found.calibration.candidates][:2] == ["toy", "down"]
        stored = Calibration.model_validate_json((found.folder / "calibration.json").read_text())
        assert stored == found.calibration
        own = run_audit(work, suite, settings, calibration=stored)
        assert own.score.calibrated and own.decision.threshold is not None
        scores = found.calibration.candidates[0].scores
        assert own.score.scores["kl"].value == pytest.approx(scores["kl"].value, abs=1e-6)
        tested = check_calibration(work, stored, [*known, *three], suite, settings, name="tested")
        held_out = tested.calibration.held_out
        assert held_out is not None and held_out.candidates == stored.candidates
        assert held_out.auroc["kl"] == stored.methods["kl"].auroc
        assert held_out.false_positives == stored.methods[stored.method].false_positives
        rejected = scores[stored.method].value > stored.methods[stored.method].threshold.value
        assert held_out.true_positives.value == rejected * 0.5
        assert tested.calibration.methods == stored.methods
        with pytest.raises(RequestError, match="harmless and harmful"):
            check_calibration(work, stored, known, suite, settings)
        with pytest.raises(RequestError, match="suite cut"):
            check_calibration(work, stored, [*known, *three], cut(2), settings, name="other")
        elsewhere = stored.model_copy(
            update={"space": stored.space.model_copy(update={"base": "0" * 64})}
        )
        with pytest.raises(RequestError, match="another feature space: base 000000000000"):
            check_calibration(work, elsewhere, [*known, *three], suite, settings, name="others")
        # Refused by the first candidate, before anything is measured.
        assert not list((work.results / "audits").glob("other*/*/"))
        page = tmp_path / "both.html"
        write_audits_page(page, [own, own])
        assert page.read_text(encoding="utf-8").count(own.decision.said) == 2
        assert provenance_path(page).is_file() and not changed_since_written(page)
        with pytest.raises(RequestError, match="suite cut"):
            run_audit(work, cut(2), settings, calibration=stored)
        with pytest.raises(RequestError, match="another feature space: basis"):
            run_audit(
                work, suite, settings.model_copy(update={"basis": "neuron"}), calibration=stored
            )
        with pytest.raises(RequestError, match="n-largest"):
            run_audit(work, suite, settings.model_copy(update={"n_largest": 4}), calibration=stored)


def test_a_calibration_without_its_score_is_none(tmp_path):
    whole = shipped_calibration()
    assert whole is not None and whole.caveat == ""
    record = whole.model_dump(mode="json")
    for place, said in (("methods", "methods: no kl"), ("candidates", "scores of toy: no kl")):
        cut_off = json.loads(json.dumps(record))
        values = cut_off["methods"] if place == "methods" else cut_off["candidates"][0]["scores"]
        del values["kl"]
        (tmp_path / "cut.json").write_text(json.dumps(cut_off), encoding="utf-8")
        with pytest.raises(RequestError, match=rf"is no calibration \({said}"):
            read_calibration(tmp_path / "cut.json")
    (tmp_path / "cut.json").write_text("not JSON", encoding="utf-8")
    with pytest.raises(RequestError, match=r"is no calibration \(Invalid JSON"):
        read_calibration(tmp_path / "cut.json")
    with pytest.raises(RequestError, match="cannot be read: Is a directory"):
        read_calibration(tmp_path)


def test_a_decision_says_where_its_score_tells_nothing_apart():
    whole = shipped_calibration()
    assert whole is not None
    toy = whole.candidates[0]
    assert "chance" not in decision_by(toy.scores, toy.rise, whole).said
    by_chance = whole.model_copy(update={"method": "plain"})
    assert "AUROC 0.5 (" in by_chance.caveat
    assert by_chance.caveat in decision_by(toy.scores, toy.rise, by_chance).said
    unknown = whole.methods["kl"].model_copy(update={"auroc": None})
    alone = whole.model_copy(update={"methods": {**whole.methods, "kl": unknown}})
    assert alone.caveat.startswith("No harmful fine-tune was scored")


@pytest.mark.parametrize("text", ["", "- a", "3"])
def test_a_manifest_that_is_none_is_named_without_a_class(tmp_path, text):
    (tmp_path / "known.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RequestError, match=r"known.yaml: expected fields and their values$"):
        read_candidates(tmp_path / "known.yaml")


def test_the_command_reads_under_its_root_alone(tmp_path, capsys):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "calibration.json").write_text("{}", encoding="utf-8")
    for words, said in (
        (["--suite", "../mine.yaml"], "lies outside"),
        (["--calibration", "../calibration.json"], "lies outside"),
        (["--calibration", "none.json"], "is not there"),
        (["--uncalibrated", "--calibration", "none.json"], "exclude each other"),
        (["--explanations", "remote_fallback"], "needs --neuronpedia"),
        (["--neuronpedia", "gemma"], "--neuronpedia"),
        (["--name", "../out"], "--name"),
    ):
        assert run(["--root", str(root), "audit", "run", *words]) == 2, words
        assert said in capsys.readouterr().err
    (root / "known.yaml").write_text("candidates: []", encoding="utf-8")
    words = ["audit", "calibrate", "known.yaml", "--calibration", "none.json"]
    assert run(["--root", str(root), *words]) == 2
    assert "what --test tests" in capsys.readouterr().err
    assert run(["--root", str(root), "audit", "calibrate", "../candidates.yaml"]) == 2
    assert "lies outside" in capsys.readouterr().err
    assert not list(root.rglob("*.json"))


def test_the_command_decides_by_the_calibration_that_ships(tmp_path, capsys):
    assert run(["--root", str(tmp_path), "audit", "run", "--answer-tokens", "0", "--json"]) == 0
    output = AuditOutput.model_validate_json(capsys.readouterr().out)
    assert output.decision.decision == "reject" and output.decision.method == "kl"
    assert Path(output.files["report"]).is_file() and Path(output.files["page"]).is_file()
