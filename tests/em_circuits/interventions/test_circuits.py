"""Circuits run: shares of kept and removed nodes, where the truth is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from subjects import Subject

from em_circuits.interventions.circuits import CircuitRuns
from em_circuits.interventions.patching import ActivationPatch
from em_circuits.organisms.compiled import known_contrast, known_pair, write_known
from em_circuits.organisms.known import PROGRAMS


def test_of_one_model_everything_is_sufficient_and_nothing_is_not(tmp_path: Path) -> None:
    with known_pair(write_known(PROGRAMS["and"], tmp_path), neurons=True) as pair:
        ids = pair.input_ids(pair.prompt("11"))
        runs = CircuitRuns.alone(pair.base, ids, known_contrast(pair))
        places = list(map(tuple, runs.coordinates.tolist()))
        truth = PROGRAMS["and"].truth("11")
        circuit = torch.tensor([i for i, p in enumerate(places) if p in truth.circuit])
        idle = torch.tensor([i for i, p in enumerate(places) if p not in truth.circuit])
        sets = [torch.arange(len(runs)), torch.arange(0), circuit, idle, circuit[:1]]
        kept, gone = runs.sufficiency(sets), runs.necessity(sets)
    assert kept is not None and gone is not None
    # One bit by itself opens nothing; without it the gate is shut.
    assert kept.tolist() == pytest.approx([1, 0, 1, 0, 0], abs=1e-3)
    assert gone.tolist() == pytest.approx([1, 0, 1, 0, 1], abs=1e-3)


def test_resampled_nodes_take_the_values_of_the_other_prompt(tmp_path: Path) -> None:
    with known_pair(write_known(PROGRAMS["and"], tmp_path), neurons=True) as pair:
        one, other = (pair.input_ids(pair.prompt(text)) for text in ("11", "01"))
        runs = CircuitRuns.resampled(pair.base, one, other, known_contrast(pair))
        words = known_contrast(pair)
        logits = torch.stack([pair.base.next_logits(ids) for ids in (one, other)])
        ends = words.value(logits)
        kept = runs.sufficiency([torch.arange(len(runs)), torch.arange(0)])
    # The output of the program is all neurons' work, so that theirs are the ends.
    assert ends is not None and runs.ends == pytest.approx(ends.tolist(), abs=1e-3)
    assert kept is not None and kept.tolist() == pytest.approx([1, 0], abs=1e-3)


def test_between_models_shares_are_those_of_patching(subject: Subject) -> None:
    runs = CircuitRuns.between(subject.pair, subject.input_ids, subject.groups)
    sets = [torch.arange(0, len(runs), 3), torch.arange(0, len(runs), 7)]
    for direction, mine in (
        ("sufficiency", runs.kept(sets) - runs.ends[1]),
        ("necessity", runs.ends[0] - runs.removed(sets)),
    ):
        patch = ActivationPatch.of(subject.pair, subject.input_ids, subject.groups, direction)  # type: ignore[arg-type]
        assert torch.equal(patch.diff.coordinates, runs.coordinates)
        found = patch.recovered(patch.run(sets))
        assert torch.allclose(found.float(), mine, atol=1e-5 * subject.logit_scale())


def test_simple_scores_are_signed_but_for_magnitude(subject: Subject) -> None:
    runs = CircuitRuns.between(subject.pair, subject.input_ids, subject.groups)
    scores = {name: score() for name, score in runs.scores().items()}
    assert (scores["magnitude"] >= 0).all() and (scores["gradient"] < 0).any()
    moved = float(runs.kept([torch.arange(len(runs))])[0]) - runs.ends[1]
    # Integrated effects sum to what moving everything does, up to the midpoint rule.
    assert float(scores["integrated"].sum()) == pytest.approx(moved, rel=0.1, abs=0.05)
