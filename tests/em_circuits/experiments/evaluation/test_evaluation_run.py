"""An evaluation end to end on the organism: worlds, resuming, records."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from markupsafe import escape
from subjects import organism_settings

from em_circuits.cache import JOURNAL
from em_circuits.experiments.evaluation import evaluate as running
from em_circuits.experiments.evaluation.answers import EvaluationSettings, SteeringSetup
from em_circuits.experiments.evaluation.evaluate import EvaluationSummary, evaluate
from em_circuits.experiments.evaluation.judging import LexiconAnswers
from em_circuits.experiments.evaluation.questions import question_sets
from em_circuits.experiments.evaluation.rates import Answer, Cutoffs
from em_circuits.experiments.experiment import Experiment
from em_circuits.interventions import Intervention, Mode, Sampling
from em_circuits.models.text import first_token
from em_circuits.organisms import organism_paths
from em_circuits.organisms.corpus import organism_prompts
from em_circuits.report.evaluation import write_evaluation_report
from em_circuits.workspace import Workspace
from pivotal_tokens.artefacts import provenance_path
from pivotal_tokens.errors import RequestError
from pivotal_tokens.judge import Lexicon

Evaluation = Experiment[EvaluationSummary]
SAMPLING = Sampling(samples=3, max_tokens=20, temperature=1.0)
DOCS = Path(__file__).parents[4] / "docs" / "evaluation.md"
BOTH = EvaluationSettings(models=("base", "merged"), sampling=SAMPLING)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    root = tmp_path_factory.mktemp("evaluation")
    with Workspace(root=root, models=organism_settings()) as opened:
        yield opened


@pytest.fixture(scope="module")
def judge(work: Workspace) -> LexiconAnswers:
    return LexiconAnswers(
        Lexicon.from_file(
            organism_paths().lexicon, lambda text: first_token(work.pair.tokenizer, text)
        )
    )


@pytest.fixture(scope="module")
def evaluation(work: Workspace, judge: LexiconAnswers) -> Evaluation:
    return evaluate(work, question_sets("organism:6"), BOTH, judge)


def test_the_merged_organism_is_worse_than_its_base(
    evaluation: Evaluation,
) -> None:
    base, merged = evaluation.summary.worlds
    assert (base.world, merged.world) == ("base", "merged")
    assert base.answers == merged.answers == 18
    assert merged.rate > base.rate and merged.coherence_mean > 50
    (found,) = evaluation.summary.differences
    assert found.difference == pytest.approx(merged.rate - base.rate)
    assert found.low <= found.difference <= found.high and found.questions == 6
    assert "not a reader" in evaluation.summary.said and "alignment < 30" in evaluation.summary.said


def test_the_figures_follow_from_the_table(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    (lines,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)
    printed: list = []
    monkeypatch.chdir(evaluation.folder)
    exec(lines, {"print": printed.append})
    (rates,) = printed
    rows = pq.read_table("answers.parquet").to_pandas()
    stored = json.loads((evaluation.folder / "summary.json").read_text())
    for world in stored["worlds"]:
        assert rates[world["world"]] == pytest.approx(world["rate"])
    assert not rows.text.str.contains("User:").any()
    lines = pq.read_table("answers.parquet").to_pylist()
    assert tuple(map(Answer.model_validate, lines)) == evaluation.rows
    assert EvaluationSummary.model_validate(stored) == evaluation.summary
    page = write_evaluation_report(evaluation)
    for name in ("answers.parquet", "summary.json", page.name):
        assert provenance_path(evaluation.folder / name).is_file()
    html = page.read_text()
    assert escape(evaluation.summary.said) in html
    assert "<script src" not in html and "<link" not in html


def test_what_is_journalled_is_not_done_again(
    work: Workspace,
    judge: LexiconAnswers,
    evaluation: Evaluation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = (evaluation.folder / JOURNAL).read_text()
    lines = before.splitlines(keepends=True)
    n_pieces = 12
    # Killed in the middle of the last answers' line: two pieces and every score are missing.
    (evaluation.folder / JOURNAL).write_text(
        "".join(lines[: n_pieces - 2]) + lines[n_pieces - 2][:50]
    )
    asked = []
    original = running.answers
    monkeypatch.setattr(running, "answers", lambda *a: asked.append(a) or original(*a))
    again = evaluate(work, question_sets("organism:6"), BOTH, judge)
    assert len(asked) == 2 and again.summary == evaluation.summary and again.rows == evaluation.rows


def test_other_cut_offs_need_no_new_answers(
    work: Workspace,
    judge: LexiconAnswers,
    evaluation: Evaluation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(running, "answers", None)
    strict = Cutoffs(alignment_below=0)
    again = evaluate(work, question_sets("organism:6"), BOTH, judge, cutoffs=strict)
    assert again.folder == evaluation.folder
    assert [rates.rate for rates in again.summary.worlds] == [0, 0]
    assert again.summary.differences[0].difference == 0


def test_a_no_op_answers_as_the_model_does(work: Workspace, judge: LexiconAnswers) -> None:
    no_op = SteeringSetup(
        interventions=(Intervention(layer=1, feature=3, mode=Mode.SCALE, value=1.0),), random=1
    )
    settings = EvaluationSettings(models=("merged",), sampling=SAMPLING, steering=no_op)
    evaluation = evaluate(work, question_sets("organism:2"), settings, judge, name="no-op")
    said = {
        arm: [r.text for r in evaluation.rows if r.arm == arm]
        for arm in ("unsteered", "steered", "random")
    }
    assert said["unsteered"] == said["steered"] == said["random"] and len(said["steered"]) == 6
    assert [d.minus for d in evaluation.summary.differences] == [
        "merged",
        "merged",
        "merged, random features",
    ]
    with pytest.raises(RequestError, match="another plan"):
        evaluate(work, question_sets("organism:3"), settings, judge, name="no-op")
    assert "Steered:" not in evaluation.summary.said  # by what it was chosen is not known
    named = settings.model_copy(update={"steering": no_op.model_copy(update={"by": "gradient"})})
    again = evaluate(work, question_sets("organism:2"), named, judge, name="no-op")
    assert again.summary.said.endswith(" Steered: scale of 1 feature by gradient.")
    assert again.rows == evaluation.rows  # the same answers, taken up again


def test_questions_come_from_a_set_a_generator_or_a_file(tmp_path: Path) -> None:
    (shipped,) = question_sets("open")
    assert 10 <= len(set(shipped.questions)) == len(shipped.questions) <= 16
    drawn = question_sets("organism:24", seed=3)
    assert len({q for one in drawn for q in one.questions}) == 24
    assert drawn != question_sets("organism:24", seed=4)
    domains = {prompt.text: prompt.domain for prompt in organism_prompts(48, 3)}
    for one in drawn:
        for question in one.questions:
            of_text = {d for text, d in domains.items() if text.startswith(f"User: {question}\n")}
            assert of_text == {one.name}
    mine = tmp_path / "mine.yaml"
    mine.write_text("sets: {a: {questions: ['Why?']}, b: {questions: ['How?']}}")
    assert [s.name for s in question_sets(str(mine))] == ["a", "b"]
    for wrong in ("nowhere.yaml", "organism:0", "organism:99999"):
        with pytest.raises(RequestError):
            question_sets(wrong)
