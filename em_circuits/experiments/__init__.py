"""Experiments on labelled prompts: one prompt, across prompts, sweeps, transfer, evaluation."""
