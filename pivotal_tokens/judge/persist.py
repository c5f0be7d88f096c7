"""Persistence of judged prompts, with the verdicts that follow.

(judged,) = persist(store, pair, [judged], Thresholds())
judged.verdict          # None where no labels followed; then `judged.error` says why
refresh_verdicts(store, prompt_id, pair)        # once lists or labels are others
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pivotal_tokens.schema import HUMAN, JudgedPrompt, Judgement, Label, Thresholds, Verdict
from pivotal_tokens.store import Store
from pivotal_tokens.verdict import decide


def persist(
    store: Store, pair: str, judged: Sequence[JudgedPrompt], thresholds: Thresholds
) -> list[JudgedPrompt]:
    """Decide on several prompts; labels, votes, verdicts and the queue go into one write."""
    done = [decided(item, thresholds) for item in judged]
    store.results.put_judged(pair, done)
    return done


def decided(judged: JudgedPrompt, thresholds: Thresholds) -> JudgedPrompt:
    """A judged prompt with the verdict that its labels give, if it has labels."""
    if not isinstance(judged.outcome, Judgement):
        return judged
    lists, labels = judged.next_tokens, judged.outcome.by_token
    verdict = decide(lists.base, lists.merged, labels, thresholds)
    return judged.model_copy(update={"verdict": verdict})


def verdict_under(
    store: Store,
    prompt_id: str,
    pair: str,
    labels: Mapping[int, Label],
    thresholds: Thresholds | None = None,
    *,
    bad_prompt: bool = False,
) -> Verdict | None:
    """The verdict of some labels over the stored lists; None where there are no lists.

    By default it is under the thresholds of any verdict that the prompt has.
    """
    lists = store.results.next_tokens(prompt_id, pair)
    if lists is None:
        return None
    if thresholds is None:
        known = store.results.verdicts(prompt_id, pair).values()
        default = Thresholds(top_k=lists.base.top_k)
        thresholds = next((verdict.thresholds for verdict in known), default)
    return decide(lists.base, lists.merged, labels, thresholds, bad_prompt=bad_prompt)


def refresh_verdicts(store: Store, prompt_id: str, pair: str, *, judge: str | None = None) -> None:
    """Have the verdicts on a prompt, or one judge's, follow the lists and labels stored now.

    Each stays under the thresholds that it was given with.
    """
    for name, standing in store.results.verdicts(prompt_id, pair).items():
        if judge not in (None, name):
            continue
        if name == HUMAN:
            labels = {item.token_id: item.label for item in store.labels.of(prompt_id).human}
        else:
            judgement = store.results.judgement(prompt_id, pair, name)
            if judgement is None:
                continue
            labels = judgement.by_token
        bad = standing.kind == "bad_prompt"
        verdict = verdict_under(store, prompt_id, pair, labels, standing.thresholds, bad_prompt=bad)
        if verdict is not None and verdict != standing:
            store.results.put_verdict(prompt_id, pair, name, verdict)
