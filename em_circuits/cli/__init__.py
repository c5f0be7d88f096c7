"""The command line: one file per command group, a parse and a call each.

Exit status: 0 done, 1 the work failed, 2 the request was wrong.
"""

from em_circuits.cli.app import main

__all__ = ["main"]
