"""Rewritten hops: flagged where a model takes two, not where two layers read the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from em_circuits.activation_cache import ActivationCache
from em_circuits.cli.app import run
from em_circuits.interventions.rewritten_hops import rewritten_hops, rewritten_share
from em_circuits.organisms.compiled import CrossLayer, known_pair, write_known
from em_circuits.organisms.known import PROGRAMS
from pivotal_tokens.errors import RequestError


@pytest.mark.parametrize(
    ("name", "kind", "share"),
    [("two-hops", "rewritten", 1.0), ("echo", "rewritten", 0.0), ("two-hops", "honest", None)],
)
def test_the_share_is_that_of_the_real_model(
    name: str, kind: CrossLayer, share: float | None, tmp_path: Path
) -> None:
    with known_pair(write_known(PROGRAMS[name], tmp_path, cross_layer=kind)) as pair:
        state = ActivationCache.capture(pair.base, pair.input_ids(pair.prompt("1")))
        # The dictionary is perfect in all three: no reconstruction error tells them apart.
        assert float(state.errors(pair.base)[:, 1:].abs().max()) < 1e-3
        hops = rewritten_hops(pair.base, state)
        hooks = sum(len(module._forward_hooks) for module in pair.base.hf.modules())
        assert hooks == 0
    if share is None:  # no feature writes into a later layer
        assert hops == () and rewritten_share(hops) == 0
        return
    (hop,) = hops
    assert hop.feature == "0/1/0" and hop.share == pytest.approx(share, abs=1e-3)
    assert hop.rewritten == (share == 1)
    assert hop.layers == pytest.approx([share], abs=1e-3)


def test_per_layer_transcoders_have_none(tmp_path: Path) -> None:
    with known_pair(write_known(PROGRAMS["two-hops"], tmp_path)) as pair:
        state = ActivationCache.capture(pair.base, pair.input_ids(pair.prompt("1")))
        with pytest.raises(RequestError, match="cross-layer"):
            rewritten_hops(pair.base, state)


def test_doctor_warns_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = write_known(PROGRAMS["two-hops"], tmp_path, cross_layer="rewritten")
    base = str(paths.base)
    command = ["--base", base, "--merged", base, "--transcoders", str(paths.transcoders)]
    assert run([*command, "doctor", "--prompt", "1"]) == 0
    out = capsys.readouterr().out
    assert "warn  hops that a cross-layer transcoder rewrites as one: 100%" in out
