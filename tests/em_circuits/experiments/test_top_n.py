"""``top:N`` means the same features wherever features are chosen."""

from __future__ import annotations

from pathlib import Path

from subjects import PAD_THAI, organism_settings

from em_circuits.contrast import Contrast
from em_circuits.experiments import sweep, transfer
from em_circuits.experiments.analyse import choose_ids, rank_prompt, steer_prompt
from em_circuits.experiments.cases import Cases
from em_circuits.experiments.plan import PromptSource, SweepPlan, TransferPlan
from em_circuits.features.rank import choose_features, rank
from em_circuits.interventions import ActivationCache, Intervention
from em_circuits.labelling.result import LabelSettings
from em_circuits.labelling.run import label_prompts
from em_circuits.models.text import first_token
from em_circuits.organisms import organism_paths
from em_circuits.workspace import Workspace
from pivotal_tokens.judge import Lexicon
from pivotal_tokens.schema import Prompt

Place = tuple[int, object, int]


def places(interventions: tuple[Intervention, ...]) -> list[Place]:
    return [(item.layer, item.position, item.feature) for item in interventions]


def test_top_n_is_one_thing_in_every_command_and_in_python(tmp_path: Path) -> None:
    with Workspace(root=tmp_path, models=organism_settings(), create=True) as work:
        tokenizer = work.pair.tokenizer
        lexicon = Lexicon.from_file(
            organism_paths().lexicon, lambda text: first_token(tokenizer, text)
        )
        settings = LabelSettings(graphs_for="none")
        (labelled,) = label_prompts(work, [Prompt.of(PAD_THAI)], lexicon, settings)
        cases, model = Cases(work, None), work.pair.merged
        prompt = work.store.prompts.get(labelled.prompt_id)
        source = PromptSource(ids=(prompt.prompt_id,))
        words = Contrast.from_labels(work.store.labels.of(prompt.prompt_id).by_token)
        cache = ActivationCache.capture(model, work.pair.input_ids(prompt))

        chosen = choose_features("top:3", model, cache, words)
        expected = list(chosen.features)
        assert chosen.by == "greedy" and len(set(expected)) == 3

        steered = steer_prompt(work, prompt.prompt_id, features="top:3")
        assert places(steered.intervention.features) == expected
        assert steered.intervention.by == "greedy"

        plan = SweepPlan(name="s", prompts=source, features="top:3", combinations=("all",))
        case = cases.of(prompt, "merged")
        (trial,) = sweep.sweep_trials(plan, case, model)
        assert places(trial.interventions) == expected and plan.by == "greedy"

        paired = transfer.paired_case(cases, prompt)
        tried = TransferPlan(name="t", found_on=source, tried_on=source, k=3)
        one = next(transfer.transfer_trials(cases, tried, paired, [], ids=[], domain="seen"))
        assert places(one[1].interventions) == expected

        ids, by = choose_ids(work, "top:3", prompt.prompt_id)
        assert ids == tuple(dict.fromkeys(feature.id for feature in expected)) and by == "greedy"

        table = rank_prompt(work, prompt.prompt_id, by="greedy")
        assert list(table.top(3).features) == expected
        assert list(rank(model, prompt, words, by="greedy").top(3).features) == expected
