"""Experiment: features of the fine-tune set in the base.

python scripts/experiments/to_the_base.py --n 24
"""

from __future__ import annotations

from setting import arguments, cases_of

from em_circuits.experiments.plan import TransferPlan, parse_source
from em_circuits.experiments.transfer import run_transfer
from em_circuits.report.sweep import write_sweep_report
from em_circuits.sampling import Sampling
from pivotal_tokens.judge.continuations import LabelJudge


def main() -> None:
    """Features of medical prompts tried on prompts of every domain; print each condition."""
    given = arguments(__doc__)
    plan = TransferPlan(
        name="to-the-base",
        found_on=parse_source([f"organism:{2 if given.small else 14}:medical"], seed=0),
        tried_on=parse_source([f"organism:{given.n}"], seed=1),
        k=10,
        multiples=(1.0, 3.0),
        rollouts=Sampling(samples=2 if given.small else 8, max_tokens=3 if given.small else 12),
    )
    with cases_of(given) as cases:
        experiment = run_transfer(cases, plan, LabelJudge())
    for line in experiment.summary.conditions:
        print(
            f"{line.condition:42} evil mass {line.evil_mass_unsteered:.2f} -> "
            f"{line.evil_mass:.2f}, random {line.control:+.3f}, net {line.net:+.3f} "
            f"[{line.low:+.3f}, {line.high:+.3f}], contrast {line.contrast_change:+.2f}"
        )
    print(experiment.summary.said)
    print(write_sweep_report(experiment))


if __name__ == "__main__":
    main()
