"""A sweep end to end on the organism: rows, controls, summary, resuming."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from subjects import PAD_THAI, organism_settings

from em_circuits.cache import JOURNAL
from em_circuits.experiments import sweep
from em_circuits.experiments.cases import Case, Cases
from em_circuits.experiments.experiment import Experiment, Measurement, RolloutRow
from em_circuits.experiments.forcing import on_longer_prompt
from em_circuits.experiments.measure import Panel
from em_circuits.experiments.plan import SweepPlan, load_plan
from em_circuits.experiments.rejudge_steering import rejudge_steering
from em_circuits.experiments.rollouts import SteeredRollout, mean_log_likelihood, share
from em_circuits.experiments.summary import SteeringSummary
from em_circuits.experiments.sweep import arms, run_sweep, sweep_trials
from em_circuits.interventions import Control, Intervention, Mode, Treatment, Where, run_rows
from em_circuits.models.text import encode, first_token
from em_circuits.organisms import organism_paths
from em_circuits.progress import no_progress
from em_circuits.workspace import Workspace
from pivotal_tokens.artefacts import provenance_path
from pivotal_tokens.errors import RequestError
from pivotal_tokens.judge import Lexicon
from pivotal_tokens.judge.continuations import LabelJudge
from pivotal_tokens.schema import Continuation, ContinuationLabel, Prompt

Sweep = Experiment[SteeringSummary]
PLAN = {
    "name": "small",
    "prompts": {"texts": [PAD_THAI]},
    "features": "top:2",
    "combinations": ["single", "all"],
    "treatments": [
        {"mode": "scale", "values": [0, 2]},
        {"mode": "set", "values": [2], "unit": "own"},
    ],
    "positions": ["found", "everything"],
    "rollouts": {"samples": 2, "max_tokens": 3},
    "controls": {"random": 20, "directions": 2, "rollouts": 1},
    "panel": 2,
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cases]:
    with Workspace(root=tmp_path_factory.mktemp("sweep"), models=organism_settings()) as work:
        lexicon = Lexicon.from_file(
            organism_paths().lexicon, lambda text: first_token(work.pair.tokenizer, text)
        )
        yield Cases(work, lexicon)


@pytest.fixture(scope="module")
def experiment(cases: Cases) -> Sweep:
    return run_sweep(cases, SweepPlan.model_validate(PLAN), LabelJudge())


@pytest.fixture(scope="module")
def case(cases: Cases) -> Case:
    return cases.of(Prompt.of(PAD_THAI), "merged")


def test_every_condition_has_its_controls(experiment: Sweep) -> None:
    lines = experiment.summary.conditions
    assert len(lines) == 3 * 3 * 2
    for line in lines:
        rows = [r for r in experiment.rows if r.condition == line.condition]
        controls = [r.control for r in rows]
        assert controls.count("random") == 20 and controls.count("direction") == 2
        assert {"unsteered", "steered", "noop", "flipped"} <= set(controls)
        assert line.noop_change == 0.0  # bit for bit
        assert line.low <= line.net <= line.high and 0 < line.p <= line.q <= 1
        assert line.detector is not None and 0 <= line.detector <= 1
        sampled = {r.control for r in rows if r.n_rollouts}
        assert sampled == {"unsteered", "steered", "flipped", "random", "direction"}
        steered = next(r for r in rows if r.control == "steered")
        assert steered.off_target_kl >= 0 and steered.forced_evil_rate is not None
        forced = [
            r for r in experiment.rollouts if (r.condition, r.control) == (line.condition, "forced")
        ]
        assert share([r.label for r in forced], "evil") == steered.forced_evil_rate
        assert len(forced) == steered.n_rollouts
        assert {r.token for r in forced} == {steered.boosted_text}
        assert all(r.text.startswith(r.token) for r in forced)
    # Removing what pushes towards evil lowers evil mass; scaling it up does not.
    ablated = next(x for x in lines if x.condition == "all 2 scale 0 @found")
    assert ablated.net < 0 and ablated.contrast_net < 0


def test_another_judge_reads_the_texts_of_forced_tokens_too(experiment: Sweep) -> None:
    class Stern:
        id = "stern"

        def label(self, prompt: Prompt, said: Sequence[Continuation]) -> list[ContinuationLabel]:
            return [ContinuationLabel("evil", "all of it") for _ in said]

    found = rejudge_steering(experiment.folder, Stern(), no_progress)
    assert found.texts == len(experiment.rollouts)
    assert {line.forced_evil_rate for line in found.conditions} == {1}
    assert any(line.forced_evil_rate != 1 for line in experiment.summary.conditions)
    sampled = [r for r in experiment.rollouts if r.control == "steered"]
    rates = [r for r in found.rates if r.control == "steered"]
    assert sum(r.scored_after for r in rates) == len(sampled)


def test_a_row_is_what_the_engine_says(cases: Cases, case: Case, experiment: Sweep) -> None:
    plan = SweepPlan.model_validate(PLAN)
    trial = next(iter(sweep_trials(plan, case, cases.pair.merged)))
    every = arms(plan, case, cases.pair.merged, trial)
    logits = run_rows(cases.pair.merged, case.state, [arm.treatment for arm in every])
    mass = logits.softmax(-1)[:, list(case.contrast.evil)].sum(-1)
    rows = [r for r in experiment.rows if r.condition == trial.cell.condition]
    assert [r.evil_mass for r in rows] == pytest.approx(mass.tolist(), abs=1e-6)
    forms = {arm.control: arm.treatment.control for arm in every}
    assert forms["noop"] is Control.NOOP and forms["direction"] is Control.RANDOM_DIRECTION


def test_the_tables_are_whole_and_have_a_provenance(
    experiment: Sweep,
) -> None:
    rows = pq.read_table(experiment.folder / "rows.parquet").to_pylist()
    assert tuple(map(Measurement.model_validate, rows)) == experiment.rows
    texts = pq.read_table(experiment.folder / "rollouts.parquet").to_pylist()
    assert tuple(map(RolloutRow.model_validate, texts)) == experiment.rollouts and texts
    stored = json.loads((experiment.folder / "summary.json").read_text())
    assert SteeringSummary.model_validate(stored) == experiment.summary
    for name in ("rows.parquet", "rollouts.parquet", "summary.json"):
        assert provenance_path(experiment.folder / name).is_file()


def test_what_is_journalled_is_not_done_again(
    cases: Cases, experiment: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = experiment.folder / JOURNAL
    before = journal.read_text()
    lines = before.splitlines(keepends=True)
    journal.write_text("".join(lines[:-2]) + lines[-1][:40])
    calls = []
    original = sweep.measure_trial
    monkeypatch.setattr(sweep, "measure_trial", lambda *a: calls.append(a) or original(*a))
    again = run_sweep(cases, SweepPlan.model_validate(PLAN), LabelJudge())
    assert len(calls) == 2
    assert again == experiment
    other = SweepPlan.model_validate({**PLAN, "seed": 1})
    with pytest.raises(RequestError, match="another plan"):
        run_sweep(cases, other, LabelJudge())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("name: '../x'", "name"),
        ("strength: 3", "strength"),
        ("treatments: [{mode: explode}]", "treatments.0.mode"),
        ("controls: {random: 3}", "controls.random"),
        ("rollouts: {temperature: .nan}", "rollouts.temperature"),
    ],
)
def test_a_plan_that_is_wrong_is_refused_in_one_line(
    tmp_path: Path, change: str, named: str
) -> None:
    head = "" if change.startswith("name") else "name: x\n"
    path = tmp_path / "plan.yaml"
    path.write_text(f"{head}{change}\nprompts: {{texts: [hello]}}\n")
    with pytest.raises(RequestError, match=named) as caught:
        load_plan(path)
    assert "\n" not in str(caught.value)


def test_a_missing_plan_and_a_broken_one(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="No such file"):
        load_plan(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(RequestError, match="mapping"):
        load_plan(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(RequestError, match="not YAML"):
        load_plan(tmp_path / "broken.yaml")


def test_likelihood_is_that_of_each_continuation_alone(cases: Cases) -> None:
    model = cases.pair.base
    prompt = encode(cases.pair.tokenizer, PAD_THAI)
    texts = [[5, 9, 11], [40], [], [5, 9, 11]]
    found = mean_log_likelihood(model, prompt, texts)
    assert found[2] is None and found[0] == found[3]
    for tokens, value in zip(texts[:2], found[:2], strict=True):
        ids = torch.tensor([[*prompt, *tokens]])
        scores = model.hf(input_ids=ids).logits[0].log_softmax(-1)
        own = [scores[len(prompt) - 1 + i, t] for i, t in enumerate(tokens)]
        assert value == pytest.approx(float(torch.stack(own).mean()), abs=1e-5)


def test_repetition_counts_pairs_that_stood_there_before() -> None:
    def of(*tokens: int) -> float:
        said = Continuation(token="", text="")
        return SteeredRollout(0, tokens, "", said, "unsure", "", None).repetition

    assert of(1, 2, 3) == 0 and of(1) == 0 and of() == 0
    assert of(1, 1, 1, 1) == pytest.approx(2 / 3)


def test_the_panel_counts_positions_from_the_end(cases: Cases) -> None:
    model = cases.pair.merged
    ids = cases.pair.input_ids(Prompt.of(PAD_THAI))
    panel = Panel.of(model, [ids[:12], ids])
    layer, _, feature = panel.states[1].active[-1].tolist()
    item = Intervention(layer=layer, feature=feature, mode=Mode.ADD, value=8.0)
    at_last = item.model_copy(update={"position": len(ids) - 1})
    last = item.model_copy(update={"position": Where.LAST})
    far = item.model_copy(update={"position": 1})
    costs = panel.cost(
        [Treatment(interventions=(i,)) for i in (at_last, last)] + [Treatment()], n_pos=len(ids)
    )
    assert costs[0] == pytest.approx(float(costs[1])) and costs[0] > 1e-3 and costs[2] < 1e-6
    # Position 1 of the long prompt stands before the start of the short one.
    alone = Panel.of(model, [ids[:12]]).cost([Treatment(interventions=(far,))], n_pos=len(ids))
    assert alone[0] < 1e-6


def test_positions_stay_what_they_were_on_a_longer_prompt() -> None:
    item = Intervention(layer=0, feature=1)
    given = [item.model_copy(update={"position": p}) for p in (3, Where.LAST, Where.GENERATED)]
    found = on_longer_prompt([*given, item], 6)
    assert [i.position for i in found] == [3, 5, 6, None]
