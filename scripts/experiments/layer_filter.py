"""Experiment: features of every layer as levers, beside matched random ones.

The predecessor called its hypothesis supported by a bare ratio of scores. Here the top features of
every layer are ablated for real, beside matched random features of the same layer.

python scripts/experiments/layer_filter.py --n 5
"""

from __future__ import annotations

from setting import arguments, cases_of, sweep

from pivotal_tokens.schema import Prompt


def main() -> None:
    """One sweep per layer: its top features by gradient, ablated together."""
    given = arguments(__doc__)
    prompt = Prompt.of(given.prompt)
    with cases_of(given) as cases:
        case, model = cases.of(prompt, "merged"), cases.pair.merged
        ranked = case.choose(model, f"top:{len(case.state.active)}", by="gradient")
        for layer in range(model.sites.n_layers):
            own = [feature for feature in ranked if feature.layer == layer][: given.n]
            features = ",".join(map(str, own))
            experiment = sweep(
                cases, given, name=f"layer-{layer}", features=features, combinations=["all"]
            )
            (line,) = experiment.summary.conditions
            print(
                f"layer {layer}: {len(own)} features ablated, evil mass {line.change:+.3f}, "
                f"net {line.net:+.3f} [{line.low:+.3f}, {line.high:+.3f}], "
                f"contrast {line.contrast_change:+.2f} logits"
            )


if __name__ == "__main__":
    main()
