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


def test_every_page_looks_as_it_did(chromium, tmp_path: Path) -> None:
    found, kept = layouts(chromium, tmp_path), np.load(KEPT)
    assert found.keys() == set(kept.files)
    assert {n: s for n in found if (s := likeness(found[n], kept[n])) < ALIKE} == {}


@pytest.mark.parametrize(("style", "alike"), [(OTHER_FONTS, True), (WITHOUT, False)])
def test_fonts_may_differ_and_a_missing_part_is_seen(
    chromium, tmp_path: Path, style: str, alike: bool
) -> None:
    found, kept = layouts(chromium, tmp_path, style, ["light"]), np.load(KEPT)
    assert {n: s for n in found if ((s := likeness(found[n], kept[n])) >= ALIKE) != alike} == {}
