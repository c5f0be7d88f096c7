"""Benchmark of interventions beside circuit-tracer's: speed, memory, and reach of the levers.

Scan and generation run on the embedded organism, both sides in this process, one thread. Memory is
measured on random weights of Llama-3.2-1B's widths and vocabulary with fewer layers and features:
what a batch takes beside the weights depends on neither.

    python scripts/bench_steering.py --out results/bench_steering.json
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import Peak, Row, benchmark, lexicon, organism
from subjects import Subject, organism_settings, organism_subject
from transcoder_draws import UNSEEN
from transformers import LlamaConfig, LlamaForCausalLM

from em_circuits.cli.options import Options
from em_circuits.contrast import demeaned
from em_circuits.experiments.cases import Cases
from em_circuits.experiments.plan import TransferPlan, parse_source
from em_circuits.experiments.transfer import run_transfer
from em_circuits.interventions import (
    ActivationCache,
    Mode,
    Regime,
    Sampling,
    ablation_effects,
    generate,
    on_each,
)
from em_circuits.models import Model
from em_circuits.models.dictionaries import TranscoderDictionary
from em_circuits.models.family import Decoder
from em_circuits.models.sites import FeatureSites
from em_circuits.models.transcoders import Transcoders
from pivotal_tokens.judge.continuations import LabelJudge


class Plan(Options):
    """How much to measure."""

    features: int | None = None
    """Features of the scan; None scans all of the prompt's."""
    interventions: int = 32
    """Of the generation."""
    tokens: int = 16
    """Of each generated text."""
    batch: int = 64
    """Rows of the memory measurement."""
    layers: int = 3
    """Of its model, as against 16."""
    prompts: int = 42
    """Held-out prompts of the unseen domains."""


def measure(plan: Plan) -> list[Row]:
    """All rows of the table."""
    torch.set_num_threads(1)
    subject = organism_subject()
    with subject.pair:
        rows = [*_scan(subject, plan), *_generation(subject, plan)]
    return [*rows, *_memory(plan), *_levers(plan)]


def _scan(subject: Subject, plan: Plan) -> list[Row]:
    model, state = subject.model, subject.state()
    step = max(1, len(state.active) // plan.features) if plan.features else 1
    features = state.active[::step]
    targets = torch.tensor([*subject.groups.evil, *subject.groups.safe])

    def ours() -> torch.Tensor:
        return ablation_effects(
            model, state, targets=targets, features=features, regime=Regime.ATTENTION_FROZEN
        )

    def upstream() -> torch.Tensor:
        whole = model.replacement.feature_intervention(subject.input_ids, [])[0][0, -1]
        rows = [
            model.replacement.feature_intervention(
                subject.input_ids, [(*place, 0.0)], return_activations=False
            )[0][0, -1]
            for place in features.tolist()
        ]
        return (demeaned(whole) - demeaned(torch.stack(rows)))[:, targets]

    mine, fast = _timed(ours)
    theirs, slow = _timed(upstream)
    n, scale = len(features), subject.logit_scale()
    difference = float((mine - theirs).abs().max()) / max(1.0, scale)
    return [
        Row(f"scan of {n} features, attention_frozen", slow, fast, "ms", at_least=10),
        Row("scan: effects, difference / largest logit", None, difference, "", at_most=1e-5),
    ]


def _generation(subject: Subject, plan: Plan) -> list[Row]:
    model, state = subject.model, subject.state()
    order = state.activations.argsort(descending=True)
    places = state.active[order][: plan.interventions, ::2].unique(dim=0)
    more = state.active[order][:, ::2].unique(dim=0)
    places = torch.cat([places, more])[: plan.interventions].tolist()
    rows = [on_each([(layer, None, feature)], Mode.SET, 3.0) for layer, feature in places]
    greedy = Sampling(samples=1, max_tokens=plan.tokens, temperature=0, stop_at_end=False)
    batch = model.replacement.generate

    def upstream() -> None:
        # Upstream wants one prompt's ids for its hooks and a batch of them for `generate`.
        model.replacement.generate = lambda ids, **rest: batch(ids[None], **rest)
        for layer, feature in places:
            model.replacement.feature_intervention_generate(
                subject.input_ids,
                [(layer, slice(1, None), feature, 3.0)],
                freeze_attention=False,
                max_new_tokens=plan.tokens,
                do_sample=False,
                stop_at_eos=False,
                verbose=False,
                return_activations=False,
            )
        del model.replacement.generate

    _, together = _timed(lambda: generate(model, state, rows, greedy))
    _, alone = _timed(lambda: [generate(model, state, [row], greedy) for row in rows])
    _, slow = _timed(upstream)
    name = f"{len(rows)} interventions, {plan.tokens} tokens each"
    return [
        Row(f"{name}: circuit-tracer one by one", slow, together, "ms", at_least=6),
        Row(f"{name}: our own one by one", alone, together, "ms", at_least=6),
    ]


def _memory(plan: Plan) -> list[Row]:
    model = _random_model(plan.layers)
    ids = torch.cat([torch.tensor([128_000]), torch.randint(0, 128_000, (19,))])
    with Peak() as peak:
        state = ActivationCache.capture(model, ids)
        ablation_effects(
            model,
            state,
            targets=torch.arange(10),
            features=state.active[-(plan.batch - 1) :],
            batch_size=plan.batch,
        )
    work = (
        f"memory beside the weights, {plan.batch} rows, Llama-3.2-1B's widths, {plan.layers} layers"
    )
    return [Row(work, None, peak.megabytes, "MB", at_most=2000)]


def _random_model(n_layers: int) -> Model:
    """Widths and vocabulary of Llama-3.2-1B, bfloat16; few layers, a quarter of the features."""
    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=n_layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        tie_word_embeddings=True,
        attn_implementation="eager",
        bos_token_id=128_000,
    )
    torch.set_default_dtype(torch.bfloat16)
    try:
        hf: Any = LlamaForCausalLM(config).requires_grad_(False).eval()
        parts = []
        for layer in range(n_layers):
            held = {name: 0.02 * torch.randn(32_768, 2048) for name in ("W_enc", "W_dec")}
            biases = torch.full((32_768,), -2.5), torch.zeros(2048)
            parts.append(TranscoderDictionary(layer, partial(_rows_of, held), *biases))
    finally:
        torch.set_default_dtype(torch.float32)
    names = {"feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out"}
    transcoders = Transcoders(tuple(parts), **names)
    sites = FeatureSites.of(Decoder.of(hf), *names.values())
    return Model("base", hf, "random", None, transcoders, organism_settings(), sites)  # type: ignore[arg-type]


def _rows_of(held: dict[str, torch.Tensor], name: str, ids: torch.Tensor | None) -> torch.Tensor:
    return held[name] if ids is None else held[name][ids]


def _levers(plan: Plan) -> list[Row]:
    """The top 10 on held-out prompts of unseen domains: ablated, and set in the base."""
    transfer = TransferPlan(
        name="bench",
        found_on=parse_source(["organism:14:medical"], seed=0),
        tried_on=parse_source([f"organism:{plan.prompts}:{','.join(UNSEEN)}"], seed=1),
        k=10,
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        organism(Path(folder), dtype="float32") as work,
    ):
        lines = run_transfer(Cases(work, lexicon(work)), transfer, LabelJudge()).summary.conditions
    rows = []
    for line in sorted(lines, key=lambda line: line.condition):
        name = line.condition.removesuffix(", unseen domain")
        target = name.endswith("ablate in merged")
        rows += [
            Row(f"{name}: evil mass", None, line.change, "", at_most=-0.3 if target else None),
            Row(f"{name}: minus random, low end", None, line.low, ""),
            Row(
                f"{name}: minus random, high end",
                None,
                line.high,
                "",
                at_most=-0.2 if target else None,
            ),
            Row(f"{name}: random control", None, line.control, ""),
            Row(f"{name}: contrast", None, line.contrast_change, "logits"),
        ]
    return rows


def _timed(work: Any) -> tuple[Any, float]:
    """The result, and milliseconds of one run."""
    start = time.perf_counter()
    result = work()
    return result, 1000 * (time.perf_counter() - start)


if __name__ == "__main__":
    benchmark(Plan, measure, __doc__)
