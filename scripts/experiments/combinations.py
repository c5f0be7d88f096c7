"""Experiment: the effect of features together, beside the sum of their effects alone.

python scripts/experiments/combinations.py --n 4
"""

from __future__ import annotations

from setting import arguments, cases_of, sweep

from em_circuits.report.sweep import write_sweep_report


def main() -> None:
    """Ablate singles, pairs and the first k; print joint effects beside sums of single ones."""
    given = arguments(__doc__)
    with cases_of(given) as cases:
        kinds = ["single", "pairs", "first"]
        experiment = sweep(
            cases, given, name="combinations", features=f"top:{given.n}", combinations=kinds
        )
    lines = experiment.summary.conditions
    alone = {x.combination: x.contrast_change for x in lines if "+" not in x.combination}
    print("contrast in logits: together, sum of each alone, interaction")
    for line in lines:
        name, joint = line.combination, line.contrast_change
        if "+" in name:
            parts = [alone[part] for part in name.split("+")]
        elif name.startswith("first"):
            parts = [alone[f"#{i + 1}"] for i in range(int(name.split()[1]))]
        else:
            continue
        print(f"{name:10} {joint:+.3f} {sum(parts):+.3f} {joint - sum(parts):+.3f}")
    print(experiment.summary.said)
    print(write_sweep_report(experiment))


if __name__ == "__main__":
    main()
