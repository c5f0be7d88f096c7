"""Engines that spread work over prompts: processes of this machine, or a Ray cluster."""
