"""Fixtures of the tests of em_circuits; makes the modules beside it importable."""
