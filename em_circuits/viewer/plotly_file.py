"""plotly.js of the installed package, adapted to the pages' content security policy.

It is taken from the installed plotly package. Its map library adds a filled <style> unless an
element of a certain id is there already; no map is drawn here, so a page puts an empty element of
that id in its way and the policy stays strict.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from pathlib import Path

_GUARDED_STYLE = re.compile(r'getElementById\("([0-9a-f]{64})"\)')


def plotly_path() -> Path:
    """plotly.min.js of the installed package."""
    return Path(str(files("plotly"))) / "package_data" / "plotly.min.js"


@cache
def style_ids() -> tuple[str, ...]:
    """Ids that plotly.js looks for before it adds a style of its own."""
    return tuple(dict.fromkeys(_GUARDED_STYLE.findall(plotly_path().read_text(encoding="utf-8"))))
