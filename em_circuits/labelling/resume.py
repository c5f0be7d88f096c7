"""Where did an earlier run of the same kind stop?

    run = run_id(generator="openai:o3", kind="chat", seed=0, judge=judge.id, pair=key)
    earlier = earlier_prompts(work, source.id, run, judge.id, settings)
    earlier.finished, earlier.unfinished

A run is named by what decides its prompts and verdicts, not by its length: asked for fifty prompts
after thirty, it goes on with twenty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from em_circuits.labelling.label_result import LabelSettings
from em_circuits.workspace import Workspace
from pivotal_tokens.artefacts import content_key
from pivotal_tokens.schema import Prompt


@dataclass(frozen=True)
class Earlier:
    """The prompts of a run's earlier starts."""

    finished: int
    unfinished: tuple[Prompt, ...]


def run_id(**what: Any) -> str:
    """Names a run (12 hex digits) by everything that decides what it does."""
    return content_key(what)[:12]


def earlier_prompts(
    work: Workspace, generator: str, run: str, judge: str, settings: LabelSettings
) -> Earlier:
    """What earlier starts of a run did, and what they left half done."""
    store, pair = work.store, work.pair.key
    mine = [p for p in store.prompts.all(generator=generator) if p.extra.get("run") == run]
    verdicts = store.results.verdicts_of([p.prompt_id for p in mine], pair, judge)
    built = with_graphs(work)

    def is_finished(prompt: Prompt) -> bool:
        verdict = verdicts.get(prompt.prompt_id)
        if verdict is None:
            return False
        return not settings.wants_graphs(verdict) or prompt.prompt_id in built

    left = tuple(prompt for prompt in mine if not is_finished(prompt))
    return Earlier(len(mine) - len(left), left)


def with_graphs(work: Workspace, *, whole: bool = False) -> set[str]:
    """Prompts whose graphs of both models are registered and on the disk; `whole`: and sound."""
    there = work.graphs.has_sound if whole else work.graphs.has
    models: dict[str, set[str]] = {}
    for record in work.store.graphs.all(pair=work.pair.key):
        if there(record.key):
            models.setdefault(record.prompt_id, set()).add(record.model)
    return {prompt_id for prompt_id, found in models.items() if found == {"base", "merged"}}
