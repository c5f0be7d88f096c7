"""Known circuits: what the compiled model computes is the program, and the truth is by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from em_circuits.activation_cache import ActivationCache
from em_circuits.organisms.compiled import known_contrast, known_pair, write_known
from em_circuits.organisms.known import OUTPUT, PROGRAMS


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_model_computes_its_program_in_both_bases(name: str, tmp_path: Path) -> None:
    program = PROGRAMS[name]
    paths = write_known(program, tmp_path)
    assert (paths.transcoders is None) == (name == "product")
    for neurons in (True, False)[: 1 if paths.transcoders is None else 2]:
        with known_pair(paths, neurons=neurons) as pair:
            words = known_contrast(pair)
            for prompt in program.prompts:
                truth = program.truth(prompt)
                state = ActivationCache.capture(pair.base, pair.input_ids(pair.prompt(prompt)))
                places = [tuple(place) for place in state.active.tolist()]
                found = dict(zip(places, state.activations.tolist(), strict=True))
                # Rounding makes some that are 0 by the program a millionth, on some processors.
                wanted = dict.fromkeys(places, 0.0) | truth.activations
                assert found | dict.fromkeys(wanted.keys() - found, 0.0) == pytest.approx(
                    wanted, abs=3e-3
                )
                value = words.value(state.logits[None])
                assert value is not None
                assert float(value[0]) == pytest.approx(truth.contrast, abs=0.02)
                # Error-free: a rounding of the constant direction is all that is left.
                assert float(state.errors(pair.base)[:, 1:].abs().max()) < 1e-3


def test_the_truth_of_xor_is_the_one_on_paper() -> None:
    """Both bits set: each is read by `both` and by the output, `both` by the output."""
    truth = PROGRAMS["xor"].truth("11")
    a, b, both = (0, 1, 0), (0, 1, 1), (1, 1, 0)
    assert truth.circuit == {a, b, both}
    among = {edge for edge in truth.edges if edge[1] == OUTPUT or edge[1] == both}
    assert among == {(a, both), (b, both), (a, OUTPUT), (b, OUTPUT), (both, OUTPUT)}
    assert truth.contrast == 0
    assert PROGRAMS["xor"].truth("10").contrast == 4


@pytest.mark.parametrize(
    ("name", "prompt", "yes"),
    [
        ("majority", "110", True),
        ("majority", "100", False),
        ("parity", "111", True),
        ("parity", "110", False),
        ("carry", "011", True),
        ("carry", "001", False),
        ("choose", "101", True),
        ("choose", "100", False),
        ("duplicate", "a@1 a@2 b@3", False),
        ("induction", "c@1 b@2 a@3 c@4", True),
        ("induction", "c@1 a@2 b@3 c@4", False),
        ("relay", "1@1 0@2 q@3", True),
        ("relay", "0@1 1@2 q@3", False),
    ],
)
def test_programs_decide_as_their_names_say(name: str, prompt: str, yes: bool) -> None:
    _, contrast = PROGRAMS[name].run(prompt)
    assert (contrast > 1) == yes


def test_an_edge_runs_through_the_pattern_of_a_head() -> None:
    """In `select` the flag's mark has no path to the output but by where the head looks."""
    truth = PROGRAMS["select"].truth("f@1 v@2 w@3")
    heads = [(s, t) for s, t in truth.edges if t == (2, 3, 0)]
    marked, value = (1, 2, 0), (0, 2, 1)
    assert {s for s, _ in heads} == {marked, value}
