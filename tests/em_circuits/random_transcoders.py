"""Random transcoders over a subject: cross-layer, Top-K, with a skip connection.

The subjects' own are per-layer with ReLU (fixture) or JumpReLU (organism). Encoders are scaled so
that pre-activations have unit spread on the subject's prompt; a feature in six or so is active.
"""

from __future__ import annotations

import dataclasses

import torch
from circuit_tracer.transcoder.activation_functions import TopK
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet
from subjects import Subject

from em_circuits.bases import TranscoderPart, transcoder_parts
from em_circuits.graphs.held import captured

FEATURES = 40


def cross_layer_transcoder(
    subject: Subject, activation: str = "relu", seed: int = 0
) -> CrossLayerTranscoder:
    """A small one that reads and writes where the subject's own transcoders do."""
    model, generator = subject.pair.merged, torch.Generator().manual_seed(seed)
    own, n_layers, width = model.transcoders, model.sites.n_layers, model.hf.config.hidden_size
    clt = CrossLayerTranscoder(
        n_layers,
        FEATURES,
        width,
        activation_function="jump_relu" if activation == "JumpReLU" else "relu",
        lazy_decoder=False,
        feature_input_hook=own.feature_input_hook,
        feature_output_hook=own.feature_output_hook,
        device=model.device,
        dtype=model.dtype,
    )
    with torch.no_grad():
        for layer, spread in enumerate(_spreads(subject)):
            clt.W_enc[layer] = _drawn(generator, FEATURES, width) / spread
            clt.W_dec[layer].copy_(0.1 * _drawn(generator, FEATURES, n_layers - layer, width))
            clt.b_enc[layer] = -0.5 + 0.1 * _drawn(generator, FEATURES)
        clt.b_dec.copy_(0.02 * _drawn(generator, n_layers, width))
        if activation == "JumpReLU":
            clt.activation_function.threshold.fill_(0.4)
    return clt


def per_layer_parts(subject: Subject, kind: str, seed: int = 0) -> tuple[TranscoderPart, ...]:
    """Parts of random per-layer transcoders: ``top-k`` or ``skip``."""
    model, generator = subject.pair.merged, torch.Generator().manual_seed(seed)
    own, width = model.transcoders, model.hf.config.hidden_size
    made: dict[int, SingleLayerTranscoder] = {}
    for layer, spread in enumerate(_spreads(subject)):
        made[layer] = one = SingleLayerTranscoder(
            width,
            FEATURES,
            TopK(6) if kind == "top-k" else torch.nn.functional.relu,
            layer,
            skip_connection=kind == "skip",
            device=model.device,
            dtype=model.dtype,
        )
        with torch.no_grad():
            one.W_enc.copy_(_drawn(generator, FEATURES, width) / spread)
            one.W_dec.copy_(0.1 * _drawn(generator, FEATURES, width))
            one.b_enc.copy_(-0.5 + 0.1 * _drawn(generator, FEATURES))
            if kind == "skip":
                one.W_skip.copy_(0.1 / spread * _drawn(generator, width, width))
    bank = TranscoderSet(made, own.feature_input_hook, own.feature_output_hook)
    return transcoder_parts(dataclasses.replace(model, transcoders=bank, _replacement=None))


def _drawn(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator)


def _spreads(subject: Subject) -> list[float]:
    """By layer, the length of what a transcoder reads, typically."""
    model = subject.pair.merged
    reads = captured(model, transcoder_parts(model), subject.input_ids)
    return [float(x[1:].float().norm(dim=-1).mean()) for x in reads]
