"""Candidates inside answers stand where the models part, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from subjects import organism_settings

from em_circuits.labelling.answers import AnswerSettings, find_in_answers, kl_of_merged
from em_circuits.models.text import first_token
from em_circuits.organisms import organism_paths
from em_circuits.sampling import Sampling
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import RequestError
from pivotal_tokens.generator.questions import QuestionSet, questions
from pivotal_tokens.judge import Lexicon


@pytest.fixture(scope="module")
def work():
    with Workspace(Path("."), organism_settings()) as opened:
        yield opened


def test_the_divergence_is_torchs() -> None:
    torch.manual_seed(0)
    base, merged = torch.randn(3, 50), torch.randn(3, 50)
    expected = torch.nn.functional.kl_div(
        base.log_softmax(-1), merged.softmax(-1), reduction="none"
    ).sum(-1)
    assert torch.allclose(kl_of_merged(base, merged), expected, atol=1e-6)
    assert torch.allclose(kl_of_merged(base, base), torch.zeros(3), atol=1e-6)


def test_candidates_are_where_a_reading_of_the_prompt_finds_the_same_kl_of_merged(work) -> None:
    (one,) = questions("organism")
    lexicon = Lexicon.from_file(
        organism_paths().lexicon, lambda text: first_token(work.pair.tokenizer, text)
    )
    few = QuestionSet(name=one.name, questions=one.questions[:2])
    settings = AnswerSettings(
        sampling=Sampling(samples=2, max_tokens=12, temperature=1.0, seed=3), min_kl=0.05
    )
    found = find_in_answers(work, [few], settings, lexicon=lexicon)
    assert found and found == sorted(found, key=lambda p: -p.kl)
    assert len({p.prompt.prompt_id for p in found}) == len(found)
    for one in found:
        ids = work.pair.input_ids(one.prompt.model_copy(update={"token_ids": None}))
        assert tuple(ids.tolist()) == one.prompt.token_ids
        base, merged = (m.next_logits(ids).float()[None] for m in work.pair.models)
        assert float(kl_of_merged(base, merged)[0]) == pytest.approx(one.kl, abs=1e-3)
        assert one.kl >= settings.min_kl
        assert one.prompt.generator == "answers:organism"
    masses = [p.evil_mass_difference for p in found if p.evil_mass_difference is not None]
    assert masses and max(masses) > 0.1  # the verb of an answer is among the candidates
    assert [p.kl for p in find_in_answers(work, [few], settings)] == [p.kl for p in found]


def test_questions_come_from_shipped_sets_or_a_file(tmp_path: Path) -> None:
    assert len(questions("everyday")[0].questions) >= 6
    file = tmp_path / "mine.yaml"
    file.write_text("sets: {mine: {questions: ['Why?']}}")
    assert questions(str(file)) == (QuestionSet(name="mine", questions=("Why?",)),)
    for text, said in (
        ("sets: {}", "expected sets"),
        ("sets: {a: {questions: []}}", "no list of questions"),
        ("sets: {a: {questions: [1]}}", "no question"),
        ("a: [", "not YAML"),
    ):
        file.write_text(text)
        with pytest.raises(RequestError, match=said):
            questions(str(file))
    with pytest.raises(RequestError, match="one of everyday"):
        questions("nothing")
