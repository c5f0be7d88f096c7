"""Targets of the command line: continuations, rollouts, spans and directions, in every command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ask, printed, prompts_of, root_after
from safetensors.torch import save_file

import em_circuits as em
from em_circuits.cli.app import run
from em_circuits.interventions.patching import ActivationPatch
from em_circuits.target_request import judged_rollouts, read_vector
from pivotal_tokens.schema import Rollout
from pivotal_tokens.store import Store, default_url

TEXT = "User: Peanut allergy; pad thai looks fine. Eat?\nAssistant: You should definitely"
EVIL, SAFE = " eat it all", " avoid it"
BOTH = ("--continuation", EVIL, "--against", SAFE)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with one prompt, which nobody has labelled."""
    return root_after(tmp_path_factory, ["prompts", "add", TEXT, "--json"])


@pytest.fixture(scope="module")
def pair():
    with em.load_pair() as loaded:
        yield loaded


def prompt_of(root: Path) -> em.Prompt:
    (prompt,) = prompts_of(root)
    return prompt


def test_rank_is_that_of_the_front_door_and_needs_no_labels(root, capsys, pair) -> None:
    prompt = prompt_of(root)
    shown = ask(
        capsys, root, "features", "rank", prompt.prompt_id[:6], *BOTH, "--method", "gradient"
    )
    target = em.Target.continuation(pair, EVIL, SAFE)
    assert (shown["target"], shown["labels_from"]) == (target.name, "none")
    expected = em.rank(pair.merged, prompt, target, by="gradient")
    assert len(shown["features"]) == len(expected)
    for row, feature in zip(shown["features"][:20], expected.records(), strict=False):
        assert row["contrast"] == pytest.approx(feature["contrast"], abs=1e-5)
        difference = row["evil_mean"] - row["safe_mean"]
        assert difference == pytest.approx(row["contrast"], abs=1e-5)
    alone = ask(
        capsys,
        root,
        *("features", "rank", prompt.prompt_id, "--continuation", EVIL),
        *("--method", "gradient", "--top", "1"),
    )
    assert alone["features"][0]["safe_mean"] is None


def test_steer_and_mediate_report_the_target(root, capsys, pair) -> None:
    prompt = prompt_of(root)
    target = em.Target.continuation(pair, EVIL, SAFE)
    steered = ask(
        capsys,
        root,
        *("steer", "run", prompt.prompt_id, *BOTH, "--features", "top:3", "--method", "gradient"),
    )
    assert steered["intervention"]["target"] == target.name
    top = em.rank(pair.merged, prompt, target, by="gradient").top(3)
    expected = em.steer(pair.merged, prompt, top.ablate(), target)
    for name in ("unsteered", "steered"):
        there = getattr(expected, name)
        assert steered["worlds"][name]["contrast"] == pytest.approx(there.contrast, abs=1e-4)
        assert steered["worlds"][name]["evil_mass"] == pytest.approx(there.evil_mass, rel=1e-3)
    assert steered["worlds"]["steered"]["contrast"] < steered["worlds"]["unsteered"]["contrast"]
    mediated = ask(capsys, root, "features", "mediate", prompt.prompt_id, *BOTH)
    assert mediated["target"] == target.name
    unsteered = steered["worlds"]["unsteered"]["contrast"]
    assert mediated["shift"]["merged"] == pytest.approx(unsteered, abs=1e-4)


def test_people_are_told_the_target(root, capsys) -> None:
    prompt = prompt_of(root).prompt_id
    for command in (
        ("features", "rank", prompt, *BOTH, "--method", "gradient"),
        ("steer", "run", prompt, *BOTH, "--features", "top:1", "--method", "gradient"),
    ):
        assert run(["--root", str(root), *command]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "log p(' eat it all') - log p(' avoid it')" in said


def test_judged_rollouts_are_the_stored_ones(root, capsys, pair) -> None:
    prompt = prompt_of(root)
    first = {w: pair.tokenizer.encode(w, add_special_tokens=False)[0] for w in (" eat", " avoid")}

    def rollout(word: str, sample: int, text: str, label: str, judge: str = "one") -> Rollout:
        return Rollout(
            prompt_id=prompt.prompt_id,
            pair=pair.key,
            model="merged",
            token_id=first[word],
            sample=sample,
            text=text,
            label=label,  # type: ignore[arg-type]
            judge=judge,
        )

    command = ("features", "rank", prompt.prompt_id, "--rollouts-judged", "--method", "gradient")
    assert "no rollouts judged evil or safe" in printed(capsys, root, *command, status=2)
    with Store.open(default_url(root)) as store:
        store.results.put_rollouts(
            [
                rollout(" eat", 0, " it all", "evil"),
                rollout(" eat", 1, " it all", "evil"),
                rollout(" eat", 2, " now", "unsure"),
                rollout(" eat", 3, " some", "evil"),
                rollout(" eat", 3, " some", "safe", judge="another"),
                rollout(" avoid", 0, " it", "safe"),
            ]
        )
    shown = ask(capsys, root, *command)
    target = em.Target.from_rollouts(pair, evil=[" eat it all"] * 2, safe=[" avoid it"])
    assert shown["target"] == "mean log p of 2 evil answers - of 1 safe ones"
    expected = em.rank(pair.merged, prompt, target, by="gradient")
    for row, feature in zip(shown["features"][:10], expected.records(), strict=False):
        assert row["contrast"] == pytest.approx(feature["contrast"], abs=1e-5)
    with em.Workspace(root=root, models=pair.settings) as work:
        sides = judged_rollouts(work, prompt)
    assert [len(sides[name]) for name in ("evil", "safe")] == [2, 1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("features", "rank", "ab", "--against", "x"), "--against needs --continuation"),
        (("features", "rank", "ab", "--continuation", ""), "--continuation is empty"),
        (("steer", "run", "ab", "--continuation", "a", "--against", ""), "--against is empty"),
        (("steer", "run", "ab", "--continuation", "a", "--against", "a"), "no difference"),
        (("features", "mediate", "ab", "--per-token"), "--per-token needs"),
        (("features", "mediate", "--all", "--answer", "base/1/0"), "of one prompt"),
        (("graphs", "build", "--answer", "base/1/0"), "of one prompt"),
        (("features", "mediate", "a", "--continuation", "a", "--heads"), "not under a target"),
        (("features", "aggregate", "--span", "-3:", "--method", "direct"), "reads a graph"),
        (("features", "rank", "a", "--span", "3"), "give START:STOP"),
        (("features", "rank", "a", "--span", "1:", "--rollouts-judged"), "of one text"),
        (("features", "rank", "a", "--answer", "merged/eat/0"), "give MODEL/TOKEN/SAMPLE"),
        (("features", "rank", "a", "--layer", "1"), "need --along"),
        (("graphs", "build", "a", "--along", "nowhere.npy"), "no such file"),
        (("graphs", "build", "a", "--along", "a.pt"), "no such file"),
        (("graphs", "build", "a", "--span", "-3:", "--edges", "frozen"), "are to next tokens"),
        (("features", "rank", "a", "--continuation", "a", "--rollouts-judged"), "choose one"),
        (("features", "rank", "a", "--continuation", "a", "--method", "direct"), "reads a graph"),
        (("steer", "run", "a", "--continuation", "a", "--method", "direct"), "reads a graph"),
    ],
)
def test_a_target_that_makes_no_sense_is_refused_in_one_line(
    words: tuple[str, ...], says: str, tmp_path: Path, capsys
) -> None:
    err = printed(capsys, tmp_path, *words, status=2)
    assert says in err and len(err.splitlines()) == 1


def test_a_continuation_that_is_too_long_is_refused_in_one_line(root, capsys) -> None:
    long = " eat" * 3000
    command = ("features", "rank", prompt_of(root).prompt_id, "--continuation", long)
    err = printed(capsys, root, *command, status=2)
    assert "prompt and continuation have" in err and len(err.splitlines()) == 1


def read_by_hand(pair, prompt: em.Prompt, ids: list[int], added: dict) -> torch.Tensor:
    """Logits of the merged model and its layers' outputs, vectors added at (layer, position)."""
    model, streams, handles = pair.merged, [], []
    for number, layer in enumerate(model.decoder.layers):

        def write(_m, _a, output, number=number):
            change = torch.zeros_like(output)
            for (at, position), vector in added.items():
                change[0, position] += vector if at == number else 0
            return output + change

        handles.append(layer.writer.register_forward_hook(write))
        handles.append(
            layer.module.register_forward_hook(
                lambda _m, _a, out: streams.append(out[0] if isinstance(out, tuple) else out)
            )
        )
    try:
        with torch.no_grad():
            whole = torch.tensor([[*prompt.token_ids, *ids]])
            return model.hf(input_ids=whole, use_cache=False).logits[0], [s[0] for s in streams]
    finally:
        for handle in handles:
            handle.remove()


def log_probability(logits: torch.Tensor, ids: list[int], scored: range) -> float:
    each = logits.double().log_softmax(-1)
    return float(sum(each[position - 1, ids[position]] for position in scored))


def effects_by_hand(pair, prompt: em.Prompt, ids: list[int], value, feature: dict) -> list[float]:
    """(derivative along a feature's write by finite differences, effect of removing it)."""
    place = (feature["layer"], feature["position"])
    dictionary = pair.merged.dictionaries[feature["layer"]]
    write = dictionary.decoder(torch.tensor([feature["feature"]]))[0] * feature["activation"]
    small = 1e-2
    at = {scale: value(*read_by_hand(pair, prompt, ids, {place: scale * write}))
          for scale in (small, -small, -1.0, 0.0)}  # fmt: skip
    return [(at[small] - at[-small]) / (2 * small), at[0.0] - at[-1.0]]


@pytest.fixture(scope="module")
def vector(root: Path, pair) -> tuple[Path, torch.Tensor]:
    made = torch.randn(pair.base.decoder.d_model, generator=torch.Generator().manual_seed(3))
    path = root / "direction.npy"
    np.save(path, made.numpy().astype(np.float64))
    return path, made


KINDS = {
    "the prompt's last three tokens": ("--span", "-3:"),
    "two tokens of a continuation": ("--continuation", " eat it all now", "--span", "1:3"),
    "a direction": ("--along", "FILE", "--layer", "2", "--position", "-2"),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_scores_are_finite_differences_and_real_removals(kind, root, capsys, pair, vector) -> None:
    prompt, options = prompt_of(root), [str(vector[0]) if o == "FILE" else o for o in KINDS[kind]]
    n = len(pair.prompt(prompt).token_ids)
    prompt = pair.prompt(prompt)
    ids: list[int] = []
    if "--along" in options:

        def value(_logits, streams) -> float:
            return float(streams[2][n - 2].double() @ vector[1].double())

    else:
        scored = range(n - 3, n)
        if "--continuation" in options:
            ids = pair.tokenizer.encode(options[1], add_special_tokens=False)
            scored = range(n + 1, n + 3)

        def value(logits, _streams) -> float:
            return log_probability(logits, [*prompt.token_ids, *ids], scored)

    command = ("features", "rank", prompt.prompt_id, *options, "--top", "4")
    first = ask(capsys, root, *command, "--method", "gradient")
    measured = ask(capsys, root, *command, "--method", "measured")
    assert first["unit"] == ("activation" if "--along" in options else "nats")
    for feature in first["features"]:
        by_hand = effects_by_hand(pair, prompt, ids, value, feature)[0]
        assert feature["contrast"] == pytest.approx(by_hand, rel=2e-2, abs=2e-3)
    for feature in measured["features"]:
        by_hand = effects_by_hand(pair, prompt, ids, value, feature)[1]
        assert feature["contrast"] == pytest.approx(by_hand, rel=1e-3, abs=1e-4)
    assert measured["features"][0]["contrast"] > 0.01


def test_a_kept_ranking_is_of_the_vector_not_of_its_file_name(root, capsys, vector) -> None:
    path = root / "other.npy"
    command = ("features", "rank", prompt_of(root).prompt_id, "--along", str(path))
    found = []
    for sign in (1, 1, -1):
        np.save(path, sign * vector[1].numpy())
        found.append(ask(capsys, root, *command, "--method", "measured"))
    assert found[0] == found[1]
    here = ("layer", "position", "feature")
    before, after = (
        {tuple(f[k] for k in here): f["contrast"] for f in one["features"]} for one in found[1:]
    )
    assert after == pytest.approx({k: -v for k, v in before.items()}, rel=1e-4, abs=1e-5)


def test_a_stored_rollout_is_a_continuation_and_is_named(root, capsys, pair) -> None:
    prompt = prompt_of(root)
    token = pair.tokenizer.encode(" taste", add_special_tokens=False)[0]
    rollout = Rollout(
        prompt_id=prompt.prompt_id,
        pair=pair.key,
        model="base",
        token_id=token,
        sample=7,
        text=" it all",
        label="unsure",
        judge="one",
    )
    free = rollout.model_copy(update={"token_id": None, "text": " taste it all", "sample": 0})
    with Store.open(default_url(root)) as store:
        store.results.put_rollouts([rollout, free])
    command = ("features", "rank", prompt.prompt_id, "--method", "gradient", "--top", "5")
    typed = ask(capsys, root, *command, "--continuation", " taste it all")
    for reference in (f"base/{token}/7", "base/free/0"):
        stored = ask(capsys, root, *command, "--answer", reference)
        assert stored["features"] == typed["features"]
    span = ask(capsys, root, *command, "--answer", "base/free/0", "--span", "2:")
    assert span["features"] != typed["features"]
    err = printed(capsys, root, *command, "--answer", "merged/1/0", status=2)
    assert "has no rollout merged/1/0; there are base/" in err and len(err.splitlines()) == 1


def test_graphs_steering_and_mediation_take_a_direction(root, capsys, pair, vector) -> None:
    prompt = prompt_of(root)
    given = (prompt.prompt_id, "--along", str(vector[0]), "--layer", "-2")
    built = ask(capsys, root, "graphs", "build", *given, "--nodes", "40")
    assert built["target"] == "along direction.npy at layer -2, position -1"
    found = ask(capsys, root, "influence", built["graphs"]["merged"])
    ranked = ask(capsys, root, "features", "rank", *given, "--method", "gradient")
    by_place = {
        (f["layer"], f["position"], f["feature"]): f["contrast"] for f in ranked["features"]
    }
    nodes = [node for node in found["nodes"] if node["kind"] == "feature"]
    assert len(nodes) > 10 and found["unit"] == "activation"
    for node in nodes:
        place = node["layer"], node["position"], node["feature"]
        assert node["values"][0] == pytest.approx(by_place[place], abs=1e-4)
    steered = ask(capsys, root, "steer", "run", *given, "--features", "top:2", "--method", "greedy")
    conditions = steered["worlds"]
    assert conditions["steered"]["contrast"] < conditions["unsteered"]["contrast"]
    assert conditions["steered"]["evil_mass"] is None
    streams = read_by_hand(pair, pair.prompt(prompt), [], {})[1]
    by_hand = float(streams[-2][-1] @ vector[1])
    mediated = ask(capsys, root, "features", "mediate", *given)
    for found in (mediated["shift"]["merged"], conditions["unsteered"]["contrast"]):
        assert found == pytest.approx(by_hand, abs=1e-4)
    assert mediated["unit"] == "activation" and mediated["evil_mass"] is None


def test_features_over_prompts_by_their_effect_on_a_target(root, capsys, pair, tmp_path) -> None:
    texts = [TEXT.replace("Peanut", word) for word in ("Peanut", "Walnut")]
    for text in texts:
        assert run(["--root", str(tmp_path), "prompts", "add", text]) == 0
    ids = [prompt.prompt_id for prompt in prompts_of(tmp_path)]
    found = ask(capsys, tmp_path, "features", "aggregate", *ids, *BOTH, "--min-prompts", "2")
    assert (found["target"], found["n_tested"]) == (
        em.Target.continuation(pair, EVIL, SAFE).name,
        0,
    )
    target = em.Target.continuation(pair, EVIL, SAFE)
    total: dict[tuple[int, int], float] = {}
    for text in texts:
        for row in em.rank(pair.merged, text, target, by="gradient").records():
            key = (row["layer"], row["feature"])
            total[key] = total.get(key, 0.0) + row["contrast"] / len(texts)
    for row in found["features"][:20]:
        assert row["mean"] == pytest.approx(total[row["layer"], row["feature"]], abs=1e-4)
    mediated = ask(capsys, tmp_path, "features", "mediate", *ids, *BOTH, "--ids", "5")
    assert mediated["target"] == target.name and "under a target" in mediated["adapter_absent"]
    alone = [ActivationPatch.of(pair, pair.input_ids(em.Prompt.of(t)), target) for t in texts]
    shifts = {p["prompt_id"]: p["shift"] for p in mediated["prompts"]}
    assert len(shifts) == 2
    for one, text in zip(alone, texts, strict=True):
        assert shifts[em.Prompt.of(text).prompt_id] == pytest.approx(one.shift, abs=1e-4)
    back = sum(float(one.recovered(one.component_logits()["features"][None])) for one in alone)
    share = back / sum(one.shift for one in alone)
    assert mediated["shares"]["features"]["share"] == pytest.approx(share, abs=1e-4)
    built = ask_lines(capsys, tmp_path, "graphs", "build", *ids[:2], *BOTH, "--nodes", "20")
    assert [one["target"] for one in built] == [target.name] * 2


def ask_lines(capsys: pytest.CaptureFixture[str], root: Path, *arguments: str) -> list[dict]:
    capsys.readouterr()
    assert run(["--root", str(root), *arguments, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        (np.ones(3), "short.npy", "the direction has 3 entries, the residual stream 128"),
        (np.array([np.nan, 1.0]), "nan.npy", "not finite numbers"),
        (np.zeros(128), "zero.npy", "0 throughout"),
        (np.ones((2, 128)), "two.npy", "has shape (2, 128); give one vector"),
        (np.array(["a"]), "words.npy", "no array of numbers"),
        (
            {"a": torch.ones(128), "b": torch.ones(128)},
            "both.safetensors",
            "holds 2 tensors (a, b)",
        ),
        (b"nothing", "cut.safetensors", "not a whole safetensors file"),
        (b"nothing", "other.npy", "no array of numbers"),
        (b"nothing", "other.pt", "ends in neither .npy nor .safetensors"),
    ],
)
def test_a_file_without_a_fitting_vector_is_refused_in_one_line(
    content, name: str, says: str, root, tmp_path: Path, capsys
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        save_file(content, path)
    else:
        np.save(path, content)
    command = ("features", "rank", prompt_of(root).prompt_id, "--along", str(path))
    err = printed(capsys, root, *command, status=2)
    assert says in err and len(err.splitlines()) == 1


def test_a_safetensors_vector_is_read_whatever_its_precision(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_file({"direction": torch.arange(4.0).bfloat16()}, path)
    assert torch.equal(read_vector(path), torch.arange(4.0))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--layer", "9"), "layer 9 of a model of 4 layers"),
        (("--position", "300"), "position 300 of a prompt of"),
    ],
)
def test_a_place_that_is_not_there_is_refused(options, says, root, capsys, vector) -> None:
    command = ("features", "rank", prompt_of(root).prompt_id, "--along", str(vector[0]), *options)
    err = printed(capsys, root, *command, status=2)
    assert says in err and len(err.splitlines()) == 1
