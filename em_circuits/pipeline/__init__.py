"""Whole pieces of work over one workspace: label, build graphs, analyse, validate, demo."""
