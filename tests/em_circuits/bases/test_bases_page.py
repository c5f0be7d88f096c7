"""The code of docs/bases.md runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import torch

PAGE = Path(__file__).parents[3] / "docs" / "bases.md"


def test_the_page_s_code_runs() -> None:
    first, second = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    names: dict = {"torch": torch}
    exec(first, names)
    exec(second, names)
    pair, ids, weights = names["pair"], names["ids"], names["weights"]
    n_layers, width = pair.merged.sites.n_layers, pair.merged.hf.config.hidden_size
    generator = torch.Generator().manual_seed(0)
    reads, into = torch.randn(2, n_layers, width, generator=generator)
    parts = names["direction_parts"](pair.merged, reads, 0.01 * into)
    nodes = names["choose_nodes"](pair.merged, parts, ids, weights, n=40)
    total = names["full_edges"](pair.merged, nodes, ids, weights).total_effect()[0, :40]
    gradient = names["gradient_effects"](pair.merged, nodes, ids, weights)[0]
    assert torch.allclose(total.float(), gradient, atol=1e-5 * float(gradient.abs().max()))
    pair.close()
