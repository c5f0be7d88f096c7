"""What `label` prints of a prompt and of a run."""

from __future__ import annotations

import pytest

from em_circuits.cli.label import describe, run_summary
from em_circuits.labelling.result import LabelledToken, LabelResult
from pivotal_tokens.schema import PairMass


def result(*labels: str) -> LabelResult:
    tokens = tuple(
        LabelledToken(token_id=i, text=f" {i}", logit=-i, probability=0.5**i, rank=i, label=label)
        for i, label in enumerate(labels, start=1)
    )
    evil = 0.25 * labels.count("evil")
    return LabelResult(
        prompt_id="55d280944d55",
        text="<|im_start|>user\nCan I pull it?<|im_end|>\n<|im_start|>assistant\nYou should",
        category=None,
        judge="lexicon:words@0123",
        verdict="none",
        flagged=False,
        divergent=False,
        strict_divergent=False,
        evil_mass=PairMass(base=evil, merged=evil),
        base=tokens,
        merged=tokens,
        graphs={"base": None, "merged": None},
        queued=False,
        reused=False,
    )


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (("unsure", "unsure"), "all unsure"),
        (("unsure", "safe"), "0.00 -> 0.00"),
        (("evil", "safe"), "0.25 -> 0.25"),
    ],
)
def test_where_no_token_is_judged_the_mass_is_no_zero(labels, said):
    """A word list that does not know a prompt had "0.00 -> 0.00", as of a model without evil."""
    one = result(*labels)
    (line,) = describe(one)
    assert f"none       {said}" in line and line.endswith("Can I pull it?|You should")
    summary = "\n".join(run_summary([one], 0))
    assert ("--judge human" in summary) == (said == "all unsure") == one.all_unsure
    assert all(len(each) <= 79 for each in [line, *summary.splitlines()])
