"""Training: one loop (`optimise`), and per-layer transcoders of any model.

`transcoder_bank` has the modules and losses, `documents` the text, `activations` what MLPs read and
write on it, `transcoder_set` the training of a set that circuit-tracer loads, `transcoder_quality`
its report, `run` all of it together.
"""
