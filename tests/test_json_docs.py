"""docs/json.md says what the commands print, from their result models."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_document_is_current() -> None:
    """Run `make docs` where this fails."""
    check = [sys.executable, str(ROOT / "scripts" / "json_docs.py"), "--check"]
    assert subprocess.run(check, check=False, cwd=ROOT).returncode == 0
