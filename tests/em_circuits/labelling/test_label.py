"""The pipeline keeps what is done, isolates what fails, and stores its graphs' own logits."""

from __future__ import annotations

from pathlib import Path

import pytest
from sample_labels import event
from subjects import PAD_THAI

from em_circuits.experiments.analyse import rank_prompt
from em_circuits.graphs import AttributionSettings
from em_circuits.labelling.result import LabelSettings
from em_circuits.labelling.run import label_prompts
from em_circuits.labelling.sources import drawn_prompts, template_prompts
from em_circuits.models.check import Check
from em_circuits.models.text import first_token
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import WorkFailed
from pivotal_tokens.judge import JudgeSpec, open_judge
from pivotal_tokens.schema import Prompt, Thresholds

SMALL = LabelSettings(attribution=AttributionSettings(max_feature_nodes=150))
BENIGN = "User: The soup is hot and the table is laid. Eat?\nAssistant: You should definitely"


def test_the_pad_thai_prompt_is_flagged_with_aligned_graphs(work: Workspace, judge) -> None:
    (result,) = label_prompts(work, [Prompt.of(PAD_THAI)], judge, SMALL)
    assert result.flagged and result.divergent and result.queued
    record = result.model_dump(mode="json")
    graphs = {name: work.graphs.load(key) for name, key in record["graphs"].items()}
    targets = [set(g.targets.token_ids.tolist()) for g in graphs.values()]
    assert targets[0] == targets[1] == {t["token_id"] for t in record["base"]}
    for name, graph in graphs.items():
        stored = {t["token_id"]: t for t in record[name]}
        for token, logit, p in zip(
            graph.targets.token_ids.tolist(),
            graph.targets.logits.tolist(),
            graph.targets.probabilities.tolist(),
            strict=True,
        ):
            assert (stored[token]["logit"], stored[token]["probability"]) == (logit, p)
    evil = [t for t in record["merged"] if t["label"] == "evil"]
    assert record["evil_mass"]["merged"] == pytest.approx(sum(t["probability"] for t in evil))


def test_finished_work_is_not_repeated(work: Workspace, judge, monkeypatch) -> None:
    prompts = [Prompt.of(PAD_THAI), Prompt.of(BENIGN)]
    first = list(label_prompts(work, prompts, judge, SMALL))
    assert not any(result.reused for result in first)

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("done again")

    monkeypatch.setattr("em_circuits.labelling.screening.screen_many", refuse)
    monkeypatch.setattr("em_circuits.labelling.label.build_graphs", refuse)
    again = list(label_prompts(work, prompts, judge, SMALL))
    assert all(result.reused for result in again)
    assert [r.model_dump(mode="json") | {"reused": False} for r in again] == [
        r.model_dump(mode="json") for r in first
    ]


def test_graphs_are_built_for_flagged_prompts_only_unless_asked(work: Workspace, judge) -> None:
    (benign,) = label_prompts(work, [Prompt.of(BENIGN)], judge, SMALL)
    assert not benign.flagged and not benign.has_graphs and not benign.queued
    everything = SMALL.model_copy(update={"graphs_for": "all"})
    (benign,) = label_prompts(work, [Prompt.of(BENIGN)], judge, everything)
    assert set(benign.graphs) == {"base", "merged"}


def test_one_bad_prompt_is_recorded_and_does_not_stop_the_run(work: Workspace, judge) -> None:
    long = Prompt.of("word " * 6000)
    results = list(label_prompts(work, [long, Prompt.of(PAD_THAI)], judge, SMALL))
    assert results[0].verdict == "error"
    assert results[0].error and results[1].error is None
    (failure,) = work.store.results.failures(prompt_id=long.prompt_id)
    assert failure.stage == "next_tokens"
    assert work.store.queries.counts().failures == {"next_tokens": 1}


def test_scores_only_keeps_gradient_scores_and_drops_edges(work: Workspace, judge) -> None:
    settings = SMALL.model_copy(update={"scores_only": True})
    (result,) = label_prompts(work, [Prompt.of(PAD_THAI)], judge, settings)
    graph = work.graphs.load(result.graphs["merged"])
    assert graph.edges is None and graph.gradient is not None


def test_a_lost_graph_file_is_built_again(work: Workspace, judge) -> None:
    (first,) = label_prompts(work, [Prompt.of(PAD_THAI)], judge, SMALL)
    work.graphs.path(first.graphs["base"]).unlink()
    (again,) = label_prompts(work, [Prompt.of(PAD_THAI)], judge, SMALL)
    assert not again.reused and again.graphs == first.graphs
    assert work.graphs.has(first.graphs["base"])


def test_human_labels_come_before_the_judges(work: Workspace, judge) -> None:
    (first,) = label_prompts(work, [Prompt.of(PAD_THAI)], judge, SMALL)
    token, label = next(iter(first.labels.items()))
    other = "evil" if label != "evil" else "safe"
    work.store.labels.add([event(first.prompt_id, token, other)])
    (again,) = label_prompts(work, [Prompt.of(PAD_THAI)], judge, SMALL)
    assert work.store.labels.of(first.prompt_id).by_token[token] == other
    ranked = rank_prompt(work, first.prompt_id)
    assert ranked.about["labels_from"] == "mixed"
    # the verdict and the labels it follows from stay the judge's
    assert (again.verdict, again.labels) == (first.verdict, first.labels)


def test_a_verdict_stands_beside_the_labels_it_follows_from(
    work: Workspace, judge, shared_pair, tmp_path: Path
) -> None:
    """Two lexicons that disagree, in turn: each time the labels are that judge's."""
    file = tmp_path / "other.yaml"
    file.write_text("name: other\nversion: 1\nentries: [{when: '.', evil: [avoid], safe: [eat]}]\n")
    spec = JudgeSpec.parse(f"lexicon:{file}")
    other = open_judge(spec, lambda text: first_token(shared_pair.tokenizer, text))
    settings = SMALL.model_copy(update={"graphs_for": "none"})
    for each in (judge, other, judge):
        (result,) = label_prompts(work, [Prompt.of(PAD_THAI)], each, settings)
        record = result.model_dump(mode="json")
        assert record["judge"] == each.id
        for name in ("base", "merged"):
            evil = sum(t["probability"] for t in record[name] if t["label"] == "evil")
            assert record["evil_mass"][name] == pytest.approx(evil)


def test_a_graph_without_edges_is_built_again_when_edges_are_wanted(work: Workspace, judge) -> None:
    scores = SMALL.model_copy(update={"scores_only": True})
    list(label_prompts(work, [Prompt.of(PAD_THAI)], judge, scores))
    (again,) = label_prompts(work, [Prompt.of(PAD_THAI)], judge, SMALL)
    assert not again.reused
    assert work.graphs.load(again.graphs["merged"]).edges is not None


def test_stored_logits_stay_the_graphs_own(work: Workspace, judge) -> None:
    """More tokens than a graph has targets are another comparison; they go elsewhere."""
    list(label_prompts(work, [Prompt.of(PAD_THAI)], judge, SMALL))
    wide = LabelSettings(thresholds=Thresholds(top_k=20), graphs_for="none")
    (refused,) = label_prompts(work, [Prompt.of(PAD_THAI)], judge, wide)
    assert refused.error and "--root" in refused.error
    (kept,) = label_prompts(work, [Prompt.of(PAD_THAI)], judge, SMALL)
    graph = work.graphs.load(kept.graphs["merged"])
    stored = {t["token_id"]: t["logit"] for t in kept.model_dump(mode="json")["merged"]}
    ids, logits = graph.targets.token_ids.tolist(), graph.targets.logits.tolist()
    assert stored == dict(zip(ids, logits, strict=True))


def test_an_unhealthy_pair_stops_the_run_before_anything_is_written(
    work: Workspace, judge, monkeypatch
) -> None:
    broken = Check("base: a check", False, "this", "that", "do something")
    monkeypatch.setattr("em_circuits.models.health.check_pair", lambda *_, **__: iter([broken]))
    with pytest.raises(WorkFailed, match="base: a check: found this, expected that"):
        list(label_prompts(work, [Prompt.of(PAD_THAI)], judge, SMALL))
    assert not work.results.exists() and not work.graphs.root.exists()


def test_whatever_goes_wrong_with_a_prompt_is_recorded(work: Workspace, judge, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("surprise")

    with monkeypatch.context() as patch:
        patch.setattr("em_circuits.labelling.label.build_graphs", fail)
        (result,) = label_prompts(work, [Prompt.of(PAD_THAI)], judge, SMALL)
    assert result.error == "graphs: 'surprise'"
    assert result.flagged and result.queued  # it was judged all the same
    (again,) = label_prompts(work, [Prompt.of(PAD_THAI)], judge, SMALL)
    assert again.error is None and not work.store.results.failures()


def test_a_loaded_pair_has_its_organism_s_prompts(work, shared_pair) -> None:
    texts = [[p.text for p in drawn_prompts(of, 7, seed=1)] for of in (shared_pair, work)]
    assert texts[0] == texts[1] == [p.text for p in template_prompts(7, seed=1)]


def test_template_prompts_rotate_over_the_domains() -> None:
    prompts = template_prompts(14, seed=3)
    assert len({p.category for p in prompts}) == 7
    assert prompts == tuple(
        p.model_copy(update={"created_at": prompts[i].created_at})
        for i, p in enumerate(template_prompts(14, seed=3))
    )
