"""Palette PNGs of pictures with many nearly equal colours, without another library.

The palette takes colours that are frequent and far from those it has; every pixel the nearest.

    path.write_bytes(small_png(page.screenshot(), colours=64))
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KINDS = {2: 3, 6: 4}


def small_png(data: bytes, *, colours: int) -> bytes:
    """An 8-bit RGB(A) PNG again, with at most so many colours."""
    pixels = _decoded(data)
    height, width = pixels.shape[:2]
    flat = (pixels.reshape(-1, 3) >> 2).astype(np.int64)
    code = (flat[:, 0] << 12) | (flat[:, 1] << 6) | flat[:, 2]
    found, where, counts = np.unique(code, return_inverse=True, return_counts=True)
    channels = np.stack([found >> 12, (found >> 6) & 63, found & 63], 1)
    chosen = channels[_spread(channels, counts, colours)]
    distance = ((channels[:, None] - chosen[None]) ** 2).sum(2)
    index = distance.argmin(1)[where.ravel()].astype(np.uint8).reshape(height, width)
    palette = ((chosen << 2) | (chosen >> 4)).astype(np.uint8).tobytes()
    rows = b"".join(b"\0" + row.tobytes() for row in index)
    head = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    parts = ((b"IHDR", head), (b"PLTE", palette), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(kind, body) for kind, body in parts)


def _spread(channels: np.ndarray, counts: np.ndarray, n: int) -> list[int]:
    """Colours one after the other, each the one that is worst served so far."""
    picked = [int(counts.argmax())]
    far = ((channels - channels[picked[0]]) ** 2).sum(1)
    while len(picked) < min(n, len(channels)):
        picked.append(int((far * np.sqrt(counts)).argmax()))
        far = np.minimum(far, ((channels - channels[picked[-1]]) ** 2).sum(1))
    return picked


def _decoded(data: bytes) -> np.ndarray:
    """RGB pixels."""
    at, body = len(_SIGNATURE), b""
    width = height = depth = 0
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        part = data[at + 8 : at + 8 + size]
        if kind == b"IHDR":
            width, height, bits, colour, *_ = struct.unpack(">IIBBBBB", part)
            depth = _KINDS[colour]
            assert bits == 8
        elif kind == b"IDAT":
            body += part
        at += 12 + size
    stride = width * depth
    raw = np.frombuffer(zlib.decompress(body), np.uint8).reshape(height, stride + 1)
    rows, above = np.zeros((height, stride), np.uint8), np.zeros(stride, np.uint8)
    for y in range(height):
        above = rows[y] = _unfiltered(int(raw[y, 0]), raw[y, 1:], above, depth)
    return rows.reshape(height, width, depth)[..., :3]


def _unfiltered(kind: int, line: np.ndarray, above: np.ndarray, depth: int) -> np.ndarray:
    if kind == 0:
        return line
    if kind == 2:
        return line + above
    out = [0] * len(line)
    values, up = line.tolist(), above.tolist()
    for x, value in enumerate(values):
        left = out[x - depth] if x >= depth else 0
        corner = up[x - depth] if x >= depth else 0
        guess = {1: left, 3: (left + up[x]) // 2}.get(kind)
        out[x] = (value + (_paeth(left, up[x], corner) if guess is None else guess)) & 255
    return np.array(out, np.uint8)


def _paeth(left: int, up: int, corner: int) -> int:
    guess = left + up - corner
    near = [
        (abs(guess - left), 0, left),
        (abs(guess - up), 1, up),
        (abs(guess - corner), 2, corner),
    ]
    return min(near)[2]


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
