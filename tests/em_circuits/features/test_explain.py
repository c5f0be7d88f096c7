"""Contexts are where a feature fires most, pushes its decoder's, a proxy says that it is one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from subjects import Subject

from em_circuits.feature import FeatureId
from em_circuits.features.contexts import top_contexts
from em_circuits.features.explain import LOW_SIMILARITY, coverage, explain
from em_circuits.features.neuronpedia import (
    KINDS,
    LONGEST,
    LabelSource,
    NeuronpediaLabels,
    best_explanation,
)
from em_circuits.features.promoted import decoder_logits, promoted_tokens
from em_circuits.interventions import ActivationCache
from em_circuits.models.text import decode_token
from pivotal_tokens.errors import RequestError, WorkFailed

TEXTS = (
    "User: Peanut allergy; pad thai looks fine. Eat?",
    "Assistant: You should avoid it.",
    "Is it safe to drive home tonight? I would wait.",
    "Short.",
)
SOURCE = LabelSource.parse("toy/{layer}-transcoder")


def active_features(subject: Subject, n: int) -> list[FeatureId]:
    state = subject.state()
    order = state.activations.argsort(descending=True)
    return list(
        dict.fromkeys(FeatureId(int(layer), int(f)) for layer, _, f in state.active[order].tolist())
    )[:n]


def test_contexts_are_the_largest_activations_of_single_runs(subject: Subject) -> None:
    features = active_features(subject, 4)
    found = top_contexts(subject.model, features, TEXTS, keep=2, batch=3)
    tokenizer = subject.pair.tokenizer
    from em_circuits.models.text import encode

    for layer, feature in features:
        best = []
        n_active = 0
        for document, text in enumerate(TEXTS):
            ids = torch.tensor(encode(tokenizer, text))
            state = ActivationCache.capture(subject.model, ids)
            coordinates = torch.tensor([[layer, p, feature] for p in range(1, len(ids))])
            values = state.activation_of(coordinates)
            n_active += int((values > 0).sum())
            if float(values.max()) > 0:
                best.append((float(values.max()), document, int(values.argmax()) + 1, ids))
        best.sort(key=lambda row: -row[0])
        contexts = found[layer, feature]
        assert contexts.n_active == n_active
        assert len(contexts.best) == min(2, len(best))
        for context, (value, document, position, ids) in zip(contexts.best, best, strict=False):
            assert context.activation == pytest.approx(value, rel=1e-4)
            assert (context.document, context.position) == (document, position)
            assert context.token == decode_token(tokenizer, int(ids[position]))
            assert context.token in context.marked


def test_a_document_that_never_fires_gives_no_context(subject: Subject) -> None:
    features = active_features(subject, 1)
    with pytest.raises(RequestError, match="no document"):
        top_contexts(subject.model, features, ["", "  \n"])
    with pytest.raises(RequestError, match="does not exist"):
        top_contexts(subject.model, [FeatureId(99, 0)], TEXTS)
    with pytest.raises(RequestError, match="does not exist"):
        top_contexts(subject.model, [FeatureId(0, 10**7)], TEXTS)


@torch.no_grad()
def test_pushes_are_what_the_models_own_norm_and_head_make_of_the_decoder(
    subject: Subject,
) -> None:
    """norm(x + v) rms(x + v) - norm(x) rms(x) = g v for any x: the real modules, scale undone."""
    model = subject.model
    layer, feature = active_features(subject, 1)[0]
    v = model.transcoders[layer].decoder(torch.tensor([feature]))[0].float()
    norm = model.hf.model.norm
    x = torch.randn(len(v), generator=torch.Generator().manual_seed(1))
    rms = lambda h: (h.pow(2).mean() + norm.variance_epsilon).sqrt()  # noqa: E731
    moved = norm(x + v) * rms(x + v) - norm(x) * rms(x)
    expected = model.hf.lm_head(moved)
    expected = expected - expected.mean()
    found = decoder_logits(model, FeatureId(layer, feature))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    ends = promoted_tokens(model, FeatureId(layer, feature), keep=3)
    assert ends.promoted[0].value == pytest.approx(float(found.max()))
    assert ends.suppressed[0].token_id == int(found.argmin())


@pytest.fixture
def site() -> Iterator[tuple[str, list[str]]]:
    """An HTTP server that speaks Neuronpedia's answers, and the paths it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            index = int(self.path.rsplit("/", 1)[1])
            status = {1: 404, 3: 503}.get(index, 200)
            written = [{"description": f"about {index}"}] if index != 2 else []
            body = json.dumps({"explanations": written}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_labels_are_asked_for_once_and_kept(site: tuple[str, list[str]], tmp_path: Path) -> None:
    address, asked = site
    labels = NeuronpediaLabels(SOURCE, tmp_path, address=address)
    assert [labels.of(FeatureId(5, i)) for i in (0, 0, 1, 1, 2, 2)] == ["about 0"] * 2 + [None] * 4
    assert asked == [f"/api/feature/toy/5-transcoder/{i}" for i in (0, 1, 2)]
    offline = NeuronpediaLabels(SOURCE, tmp_path, online=False, address="http://127.0.0.1:1")
    assert offline.of(FeatureId(5, 0)) == "about 0" and offline.of(FeatureId(5, 9)) is None
    assert list(offline.known(5)) == [(0, "about 0")] and list(offline.known(4)) == []
    with pytest.raises(WorkFailed, match="503"):
        labels.of(FeatureId(5, 3))
    with pytest.raises(WorkFailed, match="--cache-only"):
        NeuronpediaLabels(SOURCE, tmp_path, address="http://127.0.0.1:1").of(FeatureId(5, 9))


def test_a_broken_cache_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "toy" / "5-transcoder" / "0.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(RequestError, match=r"0\.json"):
        NeuronpediaLabels(SOURCE, tmp_path, online=False).of(FeatureId(5, 0))


@pytest.mark.parametrize("text", ["", "model", "m/source", "../{layer}", "m/{layer}/x", "/{layer}"])
def test_a_label_source_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="MODEL/SOURCE"):
        LabelSource.parse(text)


def test_without_a_label_the_nearest_labelled_neighbour_stands_in(subject: Subject) -> None:
    layer, feature = active_features(subject, 1)[0]
    width = len(subject.model.transcoders[layer].b_enc)
    others = [i for i in range(width) if i != feature][:40]

    class Cached:
        def of(self, asked: tuple[int, int]) -> str | None:
            return "its own" if asked[1] == others[0] else None

        def known(self, asked: int) -> list[tuple[int, str]]:
            return [(i, f"label {i}") for i in others] if asked == layer else []

    rows = subject.model.transcoders[layer].decoder(torch.arange(width))
    rows = rows.detach().float()
    unit = rows / rows.norm(dim=1, keepdim=True)
    cosines = (unit @ unit[feature])[others]
    own, proxy = explain(
        subject.model, [FeatureId(layer, i) for i in (others[0], feature)], TEXTS, Cached(), keep=1
    )
    assert own.label is not None and (own.label.kind, own.label.text) == ("direct", "its own")
    assert proxy.label is not None and proxy.label.kind == "proxy"
    assert proxy.label.feature == others[int(cosines.argmax())]
    assert proxy.label.cosine == pytest.approx(float(cosines.max()), abs=1e-5)
    low = int(float(cosines.max()) < LOW_SIMILARITY)
    cosine = f"{float(cosines.max()):.2f}"
    said = f"low-sim {low}, cosine median {cosine}, least {cosine}"
    assert coverage([own.label, proxy.label]) == f"direct 1/2; proxy 1/2 ({said})"
    assert json.dumps(proxy.model_dump(mode="json"), allow_nan=False)
    (bare,) = explain(subject.model, [FeatureId(layer, feature)], TEXTS, None, keep=1)
    assert bare.label is None


def test_the_command_says_what_a_feature_does_and_refuses_what_is_none(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from em_circuits.cli.app import run

    text = tmp_path / "text.txt"
    text.write_text("\n".join(TEXTS), encoding="utf-8")
    command = ["--root", str(tmp_path), "features", "explain"]
    assert run([*command, "1/3,3/12/41", "--text", str(text), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [(f["layer"], f["feature"]) for f in answer["features"]] == [(1, 3), (3, 41)]
    assert answer["coverage"] == "direct 0/2; proxy 0/2 (low-sim 0)"
    assert run([*command, "1/3", "--text", str(text)]) == 0
    assert "labels: direct 0/1" in capsys.readouterr().out
    for wrong in (
        ["1/99999", "--text", str(text)],
        ["one"],
        ["top:5"],
        ["1/3", "--text", str(tmp_path / "none")],
        ["1/3", "--cache-only"],
        ["1/3", "--neuronpedia", "x"],
    ):
        assert run([*command, *wrong]) == 2, wrong
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text.txt"]


def explained(text: str, kind: str = "other", *scores: float) -> dict[str, object]:
    return {"description": text, "typeName": kind, "scores": [{"value": x} for x in scores]}


def test_the_explanation_that_is_shown_is_short_well_scored_and_of_a_preferred_kind():
    usual, worse = KINDS[0], KINDS[1]
    long = explained("x" * (LONGEST + 1), usual, 1.0)
    assert best_explanation([explained("b", worse), explained("a", usual)]) == "a"
    assert best_explanation([explained("a", usual), explained("b", worse, 0.2)]) == "b"
    assert best_explanation([explained("a", usual, 0.1), explained("b", worse, 0.2, 0.7)]) == "b"
    assert best_explanation([long, explained(" b ")]) == "b"
    assert best_explanation([long]) == "x" * (LONGEST + 1)
    assert best_explanation([explained("longer", usual), explained("short", usual)]) == "short"
    damaged = [{"description": None}, {}, "text", explained("  ")]
    assert best_explanation([*damaged, explained("c")]) == "c"
    assert best_explanation(damaged) is None
