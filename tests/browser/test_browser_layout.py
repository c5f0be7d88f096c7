"""Pages look as they did: layouts, compared with a tolerance for fonts and for nothing else.

`python scripts/screenshots.py --layout tests/browser/layout.npz` takes them anew.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from screenshots import ALIKE, layouts, likeness

KEPT = Path(__file__).parent / "layout.npz"
OTHER_FONTS = "* { font-family: 'DejaVu Serif', 'Liberation Serif', serif !important; }"
WITHOUT = "main > * > *:nth-child(-n+2) { display: none !important; }"


@pytest.mark.slow
def test_every_page_looks_as_it_did_in_any_font_and_not_without_a_part(
    chromium, tmp_path: Path
) -> None:
    kept = np.load(KEPT)
    plain, other, less = layouts(chromium, tmp_path, [OTHER_FONTS, WITHOUT])
    assert plain.keys() == set(kept.files) and other.keys() == less.keys() < plain.keys()
    for found in (plain, other):
        assert {n: s for n in found if (s := likeness(found[n], kept[n])) < ALIKE} == {}
    assert {n: s for n in less if (s := likeness(less[n], kept[n])) >= ALIKE} == {}
