"""Experiment: a prompt's top features scaled one by one, beside their controls.

The predecessor multiplied ten features by 15, one by one, and found that appending the boosted
token did the same. Here each is scaled beside its controls.

python scripts/experiments/one_by_one.py --n 10
"""

from __future__ import annotations

from setting import arguments, cases_of, sweep

from em_circuits.report.sweep import write_sweep_report


def main() -> None:
    """Sweep the top features alone; print what each did and what its token does."""
    given = arguments(__doc__)
    factors, samples, tokens = ([0, 15], 2, 4) if given.small else ([0, 1.5, 5, 15], 8, 12)
    with cases_of(given) as cases:
        experiment = sweep(
            cases,
            given,
            name="one-by-one",
            features=f"top:{given.n}",
            combinations=["single"],
            treatments=[{"mode": "scale", "values": factors}],
            rollouts={"samples": samples, "max_tokens": tokens},
        )
    for line in experiment.summary.conditions:
        print(
            f"{line.condition:26} net {line.net:+.3f} "
            f"[{line.low:+.3f}, {line.high:+.3f}]  evil said {line.evil_rate:.2f}, "
            f"its token alone {line.forced_evil_rate:.2f}, perplexity {line.perplexity:.1f}"
        )
    print(experiment.summary.said)
    print(write_sweep_report(experiment))


if __name__ == "__main__":
    main()
