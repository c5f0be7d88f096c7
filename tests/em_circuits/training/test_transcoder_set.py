"""Sets trained on a tiny model: plain algebra as the oracle, kills, circuit-tracer's loader."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from subjects import Subject, organism_subject
from transformers import AutoModelForCausalLM, AutoTokenizer

from em_circuits.experiments.transcoder_training import carried_shares, template_documents
from em_circuits.models.family import Decoder
from em_circuits.models.pair import ModelPair
from em_circuits.models.text import cut_pieces, encode
from em_circuits.models.transcoder_files import TranscoderFiles
from em_circuits.models.transcoders import load_transcoders
from em_circuits.organisms.paths import organism_paths
from em_circuits.training import optimise as loop
from em_circuits.training import transcoder_set
from em_circuits.training.activations import ActivationStream, MlpSource
from em_circuits.training.affine import AffineMaps, affine_maps
from em_circuits.training.run import PROSE, REPORT, TrainedModels, train_and_measure
from em_circuits.training.settings import BankConfig, SetTraining
from em_circuits.training.transcoder_bank import TranscoderBank
from em_circuits.training.transcoder_quality import compared_maps, replacements

ASKED = SetTraining(features=48, k=6, layers="1,3", steps=14, batch=64, tokens=500, skip=True)
TEXTS = template_documents(str(organism_paths().base), 5)[:45]


@dataclass(frozen=True)
class Drawn(MlpSource):
    """What two "MLPs" read is drawn, what they write is a given function."""

    function: Callable | None = None
    runs: list = field(default_factory=list)

    def read(self, pieces):
        self.runs.append(len(pieces))
        rows = [
            torch.randn(2, len(p) - 1, 6, generator=torch.Generator().manual_seed(p[1]))
            for p in pieces
        ]
        x = torch.cat(rows, 1)
        return x, self.function(x)


def stream_of(function, *, buffer=60, batch=7):
    pieces = [[0, i, *[2] * (i % 5 + 5)] for i in range(40)]
    return ActivationStream(Drawn((), (0, 1), function), pieces, buffer, batch, seed=3)


def linear(x):
    matrix = torch.arange(36.0).reshape(6, 6).sin()
    return torch.stack([x[0] @ matrix.T + 3, x[1] @ matrix - 1])


def test_an_affine_mlp_is_recovered_and_leaves_features_nothing():
    stream = stream_of(linear)
    maps = affine_maps(stream)
    x, y = stream.held(1)
    torch.testing.assert_close(x @ maps.weight.mT + maps.bias[:, None], y, atol=1e-3, rtol=1e-3)
    bank = TranscoderBank(n_layers=2, d_model=6, config=BankConfig(features=9, k=9, skip=True))
    bank.start(x, y, maps.weight)
    bank.W_dec.data.zero_()
    assert float(bank(x, y).detach()) < 1e-6  # FVU, with every feature allowed to fire
    folded = bank.folded(bank.threshold(x))[1]
    torch.testing.assert_close(x[1] @ folded["W_skip"].T + folded["b_dec"], y[1], atol=1e-3, rtol=0)


def test_a_pass_takes_every_position_once_and_a_step_is_a_function_of_its_number():
    def key(x):
        return [tuple(row) for row in x[0].mul(1e4).round().int().tolist()]

    stream = stream_of(linear)
    steps = stream.steps_per_pass
    seen = [row for step in range(steps) for row in key(stream.batch_at(step)[0])]
    assert len(set(seen)) == len(seen) == 7 * steps
    assert len(stream.buffers) > 2
    assert all(sum(len(p) - 1 for p in one) <= 60 for one in stream.buffers)
    assert sum(stream.source.runs) == sum(map(len, stream.buffers))
    for step in (steps + 2, 1, 2 * steps - 1):
        fresh = stream_of(linear).batch_at(step)
        assert all(torch.equal(a, b) for a, b in zip(fresh, stream.batch_at(step), strict=True))
    assert key(stream.batch_at(0)[0]) != key(stream.batch_at(steps)[0])


@pytest.mark.parametrize("gate", ["batch-topk", "topk", "jumprelu"])
def test_the_loss_is_the_plain_formula_and_thresholds_get_the_papers_gradient(gate):
    config = BankConfig(features=5, k=2, gate=gate, threshold_after=0, bandwidth=0.8, sparsity=0.3)
    bank = TranscoderBank(n_layers=1, d_model=4, config=config)
    x, y = torch.randn(1, 9, 4), torch.randn(1, 9, 4)
    loss = bank(x, y)
    pre = (x[0] @ bank.W_enc[0].T).detach()
    positive = pre.clamp(min=0)
    if gate == "topk":
        keep = positive >= positive.topk(2, 1).values[:, -1:]
    elif gate == "batch-topk":
        keep = positive >= positive.flatten().topk(18).values[-1]
    else:
        keep = pre > 1
    residual = y[0] - (positive * keep) @ bank.W_dec[0].detach()
    expected = residual.square().mean()
    if gate == "jumprelu":
        fires = (pre > 1).float().sum() / 9
        expected = expected + 0.3 * (fires / 2 - 1) ** 2
    torch.testing.assert_close(loss.detach(), expected)
    loss.backward()
    if gate == "jumprelu":  # Rajamanoharan et al. 2024, equations 11 and 12
        near = ((pre - 1).abs() < 0.4) & (pre > 0)
        by_activation = -2 * residual @ bank.W_dec[0].detach().T / residual.numel()
        by_count = 0.3 * 2 * (fires / 2 - 1) / 2 / 9
        theirs = -(near / 0.8) * (pre * by_activation + by_count)
        torch.testing.assert_close(bank.log_threshold.grad[0], theirs.sum(0))


@pytest.fixture(scope="module")
def read():
    paths = organism_paths()
    model = AutoModelForCausalLM.from_pretrained(paths.base).eval().requires_grad_(False)
    return TrainedModels((model,), AutoTokenizer.from_pretrained(paths.base), "base", ("f",))


def trained(out, read, asked=ASKED, **more):
    return train_and_measure(out, read, TEXTS, asked, about="templates", seed=2, **more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, read):
    out = tmp_path_factory.mktemp("whole") / "set"
    return out, trained(out, read)


def test_a_run_killed_anywhere_ends_with_the_bytes_of_a_whole_one(
    whole, read, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "em_circuits.training.run.OptimiserConfig",
        lambda **given: loop.OptimiserConfig(checkpoint_every=4, **given),
    )
    out, split = tmp_path / "set", ASKED.model_copy(update={"at_once": 1})
    undisturbed = tmp_path / "undisturbed"
    trained(undisturbed, read, split)
    real_batch, real_save = ActivationStream.batch_at, transcoder_set.save_layer
    calls = itertools.count()

    def killed_batch(self, step):
        if next(calls) == 6:
            raise KeyboardInterrupt
        return real_batch(self, step)

    def killed_save(directory, layer, tensors):
        if layer == 3:
            raise KeyboardInterrupt
        real_save(directory, layer, tensors)

    def killed_report(*_):
        raise KeyboardInterrupt

    for where, name, victim in (
        (ActivationStream, "batch_at", killed_batch),
        (transcoder_set, "save_layer", killed_save),
    ):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(where, name, victim)
            trained(out, read, split)
        assert list(out.glob(".*.checkpoint.safetensors")) and not (out / "config.yaml").exists()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("em_circuits.training.run.quality_prose", killed_report)
        trained(out, read, split)
    trained(out, read, split)
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in undisturbed.iterdir())
    for layer in range(4):
        name = f"layer_{layer}.safetensors"
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes()
    one, two = (json.loads((p / REPORT).read_text()) for p in (out, undisturbed))
    assert one | {"path": ""} == two | {"path": ""}


def test_a_finished_set_is_kept_and_another_recipe_refused(whole, read):
    out, report = whole
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    assert trained(out, read) == report
    assert before == {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    with pytest.raises(Exception, match="another seed or configuration"):
        trained(out, read, ASKED.model_copy(update={"k": 5}))


@torch.no_grad()
def test_the_report_is_the_plain_formula_on_held_out_text(whole, read):
    out, report = whole
    model, tokenizer = read.models[0], read.tokenizer
    documents = [cut_pieces(encode(tokenizer, text), 256) for text in TEXTS]
    train, held = transcoder_set.split_pieces(documents, 2, 500)
    assert not {tuple(p) for p in train} & {tuple(p) for p in held}
    x, y = MlpSource((Decoder.of(model),), (1, 3)).read(held)
    files = TranscoderFiles.read("--out", str(out), out)
    loaded = load_transcoders(files, device=torch.device("cpu"), dtype=torch.float32, place="gpu")
    for i, line in enumerate(report.layers):
        acts = loaded[line.layer].encode(x[i])
        missed = (y[i] - loaded[line.layer].decode(acts, x[i])).square().sum()
        assert line.fvu == pytest.approx(
            float(missed / (y[i] - y[i].mean(0)).square().sum()), rel=1e-4
        )
        assert line.l0 == pytest.approx(float((acts != 0).sum(1).float().mean()))
        assert line.dead == int((acts == 0).all(0).sum()) and min(line.fvu_halves) > 0
    assert [loaded[i].encode(x[0]).any() for i in (0, 2)] == [False, False]

    def zeroed(_mlp, _args, output):
        return torch.cat([output[:, :1], 0 * output[:, 1:]], 1)

    handle = model.model.layers[3].mlp.register_forward_hook(zeroed)
    losses = [
        torch.nn.functional.cross_entropy(
            model(torch.tensor([ids])).logits[0, 1:-1], torch.tensor(ids[2:]), reduction="sum"
        )
        for ids in held
    ]
    handle.remove()
    (zero,) = [r for r in report.replacements if r.by == "zero" and r.layers == (3,)]
    assert sum(len(ids) - 2 for ids in held) < 512  # so all of it was scored
    assert zero.loss == pytest.approx(float(sum(losses)) / sum(len(i) - 2 for i in held), rel=1e-4)
    assert zero.score is None and "| 3 | zero |" in (out / PROSE).read_text()


def test_a_replacement_by_what_the_mlp_does_changes_nothing():
    paths = organism_paths()
    model = AutoModelForCausalLM.from_pretrained(paths.base).eval()
    model.model.layers[2].mlp.down_proj.weight.data.zero_()
    files = TranscoderFiles.read("--out", "", paths.transcoders)
    loaded = load_transcoders(files, device=torch.device("cpu"), dtype=torch.float32, place="gpu")
    none = AffineMaps(torch.zeros(1, 128, 128), torch.zeros(1, 128), torch.zeros(1, 128))
    maps = compared_maps(loaded, none, (2,))
    loss, found = replacements(model, maps, [[1, 5, 6, 7, 8], [1, 9, 10, 11]])
    by = {one.by: one for one in found}
    assert by["zero"].kl == pytest.approx(0, abs=1e-6) and by["zero"].loss == pytest.approx(loss)
    assert by["set"].kl > 1e-4


@pytest.mark.frozen
@torch.no_grad()
def test_circuit_tracer_loads_the_set_and_computes_the_same(whole):
    from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set

    out, _ = whole
    files = TranscoderFiles.read("--out", str(out), out)
    ours = load_transcoders(files, device=torch.device("cpu"), dtype=torch.float32, place="gpu")
    theirs = load_transcoder_set(
        {i: str(one.path) for i, one in enumerate(files.layers)},
        scan="scan",
        feature_input_hook=files.config["feature_input_hook"],
        feature_output_hook=files.config["feature_output_hook"],
        dtype=torch.float32,
        device=torch.device("cpu"),
        lazy_encoder=False,
        lazy_decoder=False,
    )
    x = torch.randn(4, 5, 128)
    acts = theirs.encode(x)
    for layer in range(4):
        own = ours[layer].encode(x[layer])
        torch.testing.assert_close(acts[layer], own)
        rebuilt = theirs[layer].decode(acts[layer], x[layer])
        torch.testing.assert_close(rebuilt, ours[layer].decode(own, x[layer]))
    assert theirs.skip_connection


def test_a_difference_set_is_measured_by_a_real_intervention(tmp_path):
    subject: Subject = organism_subject("organism")
    with subject.pair as pair:
        read = TrainedModels(
            tuple(one.hf for one in pair.models), pair.tokenizer, "base", ("a", "b")
        )
        asked = ASKED.model_copy(update={"difference": True, "layers": "1-3"})
        prompts, kept = [(subject.input_ids, subject.groups)], {}

        def also(maps):
            kept["maps"] = maps
            n, shares = carried_shares(pair, maps, prompts)
            return {"prompts": n, "carried": shares}

        report = trained(tmp_path / "set", read, asked, also=also)
        by = {one.by: one.share for one in report.carried}
        assert report.prompts == 1 and not report.replacements and report.loss is None
        assert set(by) == {"exact", "set", "affine", "mean", "random"}
        for name in ("exact", "set"):
            assert by[name] == pytest.approx(plainly(pair, subject, kept["maps"], name), abs=1e-4)
        assert by["exact"] > 0.1 > abs(by["random"])


@torch.no_grad()
def plainly(pair: ModelPair, subject: Subject, maps, name: str) -> float:
    """The share with hooks on plain modules."""
    ids = subject.input_ids[None]
    base, merged = (one.hf for one in pair.models)

    def run(model, write=None):
        seen, handles = {}, []
        for i, layer in enumerate(model.model.layers):

            def hook(_mlp, args, output, i=i):
                seen[i] = args[0][0], output[0]
                return write[i][None] if write and i in write else None

            handles.append(layer.mlp.register_forward_hook(hook))
        logits = model(ids).logits[0, -1]
        for handle in handles:
            handle.remove()
        return logits, seen

    (own, at_base), (other, at_merged) = run(base), run(merged)
    write = {}
    for i in (1, 2, 3):
        x, y = at_base[i]
        one = maps["set"][i]
        change = at_merged[i][1] - y if name == "exact" else one.decode(one.encode(x), x)
        write[i] = y + torch.cat([0 * change[:1], change[1:]])
    values = subject.groups.value(torch.stack([own, other, run(base, write)[0]]))
    return float((values[2] - values[0]) / (values[1] - values[0]))
