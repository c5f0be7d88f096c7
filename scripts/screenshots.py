"""Screenshots of every page of the viewer, and their layouts, which tests compare with.

    python scripts/screenshots.py --root runs/demo --out docs/screenshots
    python scripts/screenshots.py --layout tests/browser/layout.npz

Screenshots are of a copy of a root that `em-circuits demo` filled, and are the same each time.

A layout is a screenshot of a store without models, as means of blocks of 32 x 32 pixels. Two are
compared by the correlation of their blocks: text in another font moves by pixels and keeps its
place (above `ALIKE`), a part of a page that is missing or elsewhere does not.
"""

from __future__ import annotations

import argparse
import base64
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from browsing import Browser, opened_chromium, running
from measure import organism
from rooms import Room, enter, furnish, unblind

from em_circuits.viewer import Sessions

ALIKE = 0.85
"""Least correlation: in serif fonts all pages have 0.94 to 1.00, without their first two parts 0.09
to 0.69 (`tests/browser/test_browser_layout.py` tries both)."""
BLOCKS = (25, 40, 3)
_SHRUNK = """async ([data, height, width]) => {
  const image = new Image();
  image.src = "data:image/png;base64," + data;
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, width, height);
  return [...context.getImageData(0, 0, width, height).data].filter((_, i) => i % 4 !== 3);
}"""


def layouts(chromium, root: Path, styles: Sequence[str] = ()) -> tuple[dict[str, np.ndarray], ...]:
    """The layouts of every page of a store without models, under its path and theme.

    Args:
        chromium: A browser.
        root: An empty folder for the store.
        styles: Rules of CSS on top of the pages' own: the light pages under each, after the plain
            ones in both themes.
    """
    furnish(root, n_more=10)
    found: tuple[dict[str, np.ndarray], ...] = tuple({} for _ in ("", *styles))
    blank = chromium.new_page()  # no policy there
    with enter(root) as room, running(room) as base:
        unblind(room)
        first = room.prompts[0].prompt_id
        paths = ["", "prompts", "graphs", "features", "steering", "review", "reports"]
        paths += [f"prompt/{first}", f"graph/{first}", f"graph/{first}?show=both"]
        for theme in ("light", "dark"):
            page = Browser(chromium, base).window(room, color_scheme=theme, bypass_csp=True)
            for path in paths:
                page.goto(base + path)
                page.wait_for_load_state("networkidle")
                if path.startswith("graph/"):
                    page.wait_for_selector("#graph[data-first-picture]")
                name = f"{theme} /{path.replace(first, 'PROMPT')}"
                for under, style in zip(found, ("", *styles), strict=True):
                    if style and theme == "dark":
                        continue
                    tag = page.add_style_tag(content=style) if style else None
                    page.wait_for_timeout(200)
                    data = base64.b64encode(page.screenshot()).decode()
                    blocks = blank.evaluate(_SHRUNK, [data, *BLOCKS[:2]])
                    under[name] = np.array(blocks, np.uint8).reshape(BLOCKS)
                    if tag is not None:
                        tag.evaluate("(element) => element.remove()")
            page.context.close()
    blank.close()
    return found


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of the blocks of two layouts, each colour about its own mean; 0 for a blank."""
    a, b = (x.astype(float) - x.mean((0, 1)) for x in (one, other))
    length = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / length) if length else 0.0


def take(root: Path, out: Path) -> Iterator[Path]:
    """Pictures at 1280x800, light, and the graph's difference and the overview dark as well."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, opened_chromium() as chromium:
        copy = Path(folder) / "root"
        shutil.copytree(root, copy)
        with organism(copy) as work:
            room = Room(copy, work, Sessions("ada"), work.store.prompts.all(), {})
            with running(room) as base:
                for name, theme, path, then in _pages(room):
                    page = Browser(chromium, base).window(room, color_scheme=theme)
                    page.goto(base + path)
                    page.wait_for_load_state("networkidle")
                    then(page)
                    page.wait_for_timeout(500)
                    path = out / f"{name}.png"
                    path.write_bytes(_small(page.screenshot()))
                    yield path
                    page.context.close()


def _small(png: bytes) -> bytes:
    """A PNG of RGB or RGBA pixels with a palette of the 256 commonest colours instead."""
    width, height, _, kind = struct.unpack(">IIBB", png[16:26])
    depth, at, packed = {2: 3, 6: 4}[kind], 8, b""
    while at < len(png):
        size, name = struct.unpack(">I4s", png[at : at + 8])
        packed += png[at + 8 : at + 8 + size] if name == b"IDAT" else b""
        at += size + 12
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, -1)
    pixels = np.zeros((height, width * depth), np.uint8)
    for y, (how, *_) in enumerate(rows[:, :1]):
        pixels[y] = _unfiltered(int(how), rows[y, 1:], pixels[y - 1] if y else None, depth)
    colours = pixels.reshape(-1, depth)[:, :3].astype(np.int64)
    codes, inverse, counts = np.unique(
        colours @ (1 << 16, 1 << 8, 1), return_inverse=True, return_counts=True
    )
    parts = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], 1)
    palette = parts[np.argsort(-counts)[:256]]
    nearest = np.concatenate(
        [((one[:, None] - palette) ** 2).sum(2).argmin(1) for one in np.array_split(parts, 64)]
    )
    indices = nearest[inverse].astype(np.uint8).reshape(height, width)
    plain = np.concatenate([np.zeros((height, 1), np.uint8), indices], 1).tobytes()

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    return (
        png[:8]
        + chunk(b"IHDR", head)
        + chunk(b"PLTE", palette.astype(np.uint8).tobytes())
        + chunk(b"IDAT", zlib.compress(plain, 9))
        + chunk(b"IEND", b"")
    )


def _unfiltered(how: int, row: np.ndarray, above: np.ndarray | None, depth: int) -> np.ndarray:
    """One row of pixels; PNG (RFC 2083) section 6."""
    up = np.zeros(len(row), np.int64) if above is None else above.astype(np.int64)
    row = row.astype(np.int64)
    if how in (0, 2):
        return (row + (up if how == 2 else 0)) % 256
    if how == 1:
        return (row.reshape(-1, depth).cumsum(0) % 256).ravel()
    out = [0] * depth
    corner = [0] * depth + up.tolist()
    for i, (value, top) in enumerate(zip(row.tolist(), up.tolist(), strict=True)):
        left = out[i]
        if how == 3:
            guess = (left + top) // 2
        else:
            choices = left, top, corner[i]
            target = left + top - corner[i]
            guess = min(choices, key=lambda c: abs(target - c))
        out.append((value + guess) % 256)
    return np.array(out[depth:])


def _pages(room: Room) -> list[tuple[str, str, str, Callable]]:
    prompt = next(r.prompt_id for r in room.store.graphs.all())
    sweep = next((room.root / "results" / "experiments").glob("*/summary.json"), None)
    report = next((room.root / "results").glob("validation/*.html"), None)
    pages: list[tuple[str, str, str, Callable]] = [
        ("overview", "light", "", _nothing),
        ("overview-dark", "dark", "", _nothing),
        ("prompts", "light", "prompts", _nothing),
        ("prompt", "light", f"prompt/{prompt}", _nothing),
        ("graph", "light", f"graph/{prompt}", _strongest),
        ("graph-side-by-side", "light", f"graph/{prompt}?show=both", _nothing),
        ("graph-difference-dark", "dark", f"graph/{prompt}?show=difference", _nothing),
        ("graph-pinned", "light", f"graph/{prompt}", _pinned),
        ("features", "light", "features", _nothing),
        ("feature", "light", "features", _first_feature),
        ("playground", "light", f"steering?prompt={prompt}", _ablate),
        ("review", "light", "review", _two_labels),
        ("reports", "light", "reports", _nothing),
    ]
    if sweep is not None:
        pages.append(("steering", "light", f"steering/{sweep.parent.name}", _nothing))
    if report is not None:
        path = report.relative_to(room.root / "results").as_posix()
        pages.append(("report", "light", f"report/{path}", _nothing))
    return pages


def _nothing(_page) -> None:
    """The page as it opens."""


def _strongest(page) -> None:
    page.locator("#panel .node-link").nth(1).click()
    page.wait_for_selector("text=Strongest inputs")


def _first_feature(page) -> None:
    page.locator("#table tbody a").first.click()
    page.wait_for_selector(".firing")
    page.fill("[data-label]", "opens the answer")
    page.keyboard.press("Enter")
    page.wait_for_selector(".toast:has-text('Kept')")


def _pinned(page) -> None:
    page.wait_for_selector("#panel .node-link")
    page.evaluate(
        """() => { const nodes = graphPage.graph.nodes
             .filter((n) => n.kind === 'feature' && graphPage.graph.shown(n, 'merged'))
             .sort((a, b) => b.at.merged.value - a.at.merged.value);
           graphPage.pins.pinned = [...nodes.slice(0, 4), ...nodes.slice(-4)].map((n) => n.name);
           graphPage.only = true;
           return graphPage.keep(); }"""
    )
    page.wait_for_timeout(1500)


def _ablate(page) -> None:
    page.wait_for_selector(".strength")
    page.click("#pg-ablate")
    page.wait_for_selector("#playground[data-state=done]")
    page.evaluate("document.getElementById('pg-result').scrollIntoView()")
    page.evaluate("scrollBy(0, -60)")


def _two_labels(page) -> None:
    page.wait_for_selector(".choice.at")
    for key in ("Enter", "e", "e"):
        page.keyboard.press(key)
        page.wait_for_timeout(300)


def main() -> None:
    """Parse and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, help="filled by em-circuits demo")
    parser.add_argument("--out", type=Path, default=Path("docs/screenshots"))
    parser.add_argument("--layout", type=Path, help="write the layouts there instead")
    given = parser.parse_args()
    if given.layout is None and given.root is None:
        parser.error("give --root or --layout")
    if given.layout is None:
        for path in take(given.root, given.out):
            print(f"{path}  {path.stat().st_size / 1000:.0f} kB")
        return
    with opened_chromium() as chromium, tempfile.TemporaryDirectory() as folder:
        np.savez_compressed(given.layout, **layouts(chromium, Path(folder) / "root")[0])


if __name__ == "__main__":
    main()
