"""Features of some prompts on others, and in the base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from subjects import organism_settings

from em_circuits.experiments.cases import Cases
from em_circuits.experiments.plan import TransferPlan, parse_source
from em_circuits.experiments.transfer import run_transfer, strongest_ids
from em_circuits.models.text import first_token
from em_circuits.organisms import organism_paths
from em_circuits.sampling import Sampling
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import RequestError
from pivotal_tokens.judge import Lexicon
from pivotal_tokens.judge.continuations import LabelJudge


def test_features_are_tried_where_they_were_not_found(tmp_path: Path) -> None:
    plan = TransferPlan(
        name="t",
        found_on=parse_source(["organism:2:medical"], seed=0),
        tried_on=parse_source(["organism:2:driving,medical"], seed=1),
        k=5,
        multiples=(1.0,),
        rollouts=Sampling(samples=2, max_tokens=2),
    )
    with Workspace(root=tmp_path, models=organism_settings()) as work:
        lexicon = Lexicon.from_file(
            organism_paths().lexicon, lambda text: first_token(work.pair.tokenizer, text)
        )
        experiment = run_transfer(Cases(work, lexicon), plan, LabelJudge())
    by_name = {line.condition: line for line in experiment.summary.conditions}
    assert set(by_name) == {
        f"{selection}, {treatment}, {where} domain"
        for selection in ("own", "others")
        for treatment in ("ablate in merged", "set in base x1")
        for where in ("seen", "unseen")
    }
    assert by_name["own, ablate in merged, unseen domain"].net < 0
    assert by_name["own, set in base x1, unseen domain"].net > 0
    for row in experiment.rows:
        assert 0 <= row.evil_mass <= 1
    assert experiment.rollouts


def test_pooling_sums_over_positions_and_prompts() -> None:
    one = torch.tensor([[0, 1, 7], [0, 2, 7], [1, 1, 4]])
    two = torch.tensor([[1, 3, 4], [2, 3, 9]])
    scored = [(one, torch.tensor([1.0, 1.0, 3.0])), (two, torch.tensor([-2.0, 1.5]))]
    assert strongest_ids(scored, 2) == ((0, 7), (2, 9))


def test_sources_of_the_command_line() -> None:
    source = parse_source(["abc", "organism:5:medical,driving"], seed=3)
    assert source.ids == ("abc",) and source.organism is not None
    assert source.organism.domains == ("medical", "driving") and source.organism.seed == 3
    assert parse_source(["abc"], seed=0).organism is None
    for wrong in (["organism:x"], ["organism:0"], ["organism:1", "organism:2"]):
        with pytest.raises(RequestError, match="organism:N"):
            parse_source(wrong, seed=0)
