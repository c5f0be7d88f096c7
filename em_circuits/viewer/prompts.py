"""The list of prompts, and the page of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from em_circuits.contrast import Contrast
from em_circuits.features import stored_scores
from em_circuits.scoring import Scoring
from em_circuits.viewer.context import AppContext, model_of
from em_circuits.viewer.rendering import Json, page
from em_circuits.viewer.steered_prompt import steered
from pivotal_tokens.errors import EmCircuitsError
from pivotal_tokens.schema import (
    Label,
    ModelName,
    NextTokenPair,
    NextTokens,
    PromptLabels,
    ReviewState,
    Rollout,
    VerdictKind,
)
from pivotal_tokens.store import AttemptView, ListingQuery, PairAttempt

PER_PAGE = 50
FEATURES_SHOWN = 12
HIDDEN = "Hidden until you answer this prompt: the contrast follows from the judge's labels."
VERDICTS: tuple[str, ...] = get_args(VerdictKind)
STATES: tuple[str, ...] = get_args(ReviewState)


@dataclass(frozen=True)
class TokenRow:
    """One candidate next token in both models."""

    token_id: int
    text: str
    base: float
    merged: float
    base_rank: int
    merged_rank: int
    label: Label | None
    by: str | None  # "human", "judge"
    judges: tuple[tuple[str, Label], ...]
    listed: bool  # in the top k of either

    @property
    def change(self) -> float:
        return self.merged - self.base


def routes(context: AppContext) -> list[BaseRoute]:
    """The list of prompts, the page of one, and its features."""

    def listing(request: Request) -> Response:
        asked = request.query_params
        return context.page(
            request,
            "prompts.html",
            categories=context.store.prompts.categories(),
            verdicts=VERDICTS,
            states=STATES,
            link=lambda n: "?" + urlencode({**asked, "page": n}),
            **context.paged(request, _query(request), per_page=PER_PAGE),
        )

    def prompt(request: Request) -> Response:
        view = context.store.queries.attempt(request.path_params["prompt"])
        return context.page(request, "prompt.html", **_shown(context, request, view))

    def features(request: Request) -> Response:
        prompt = context.store.prompts.get(request.path_params["prompt"])
        model = model_of(request)
        if context.hiding(request, prompt.prompt_id):
            return page("nothing.html", what=HIDDEN)
        try:
            values = _features(context, request, prompt.prompt_id, model)
        except EmCircuitsError as error:
            return page("nothing.html", what=str(error))
        return page("prompt_features.html", prompt_id=prompt.prompt_id, model=model, **values)

    def features_json(request: Request) -> Response:
        prompt = context.store.prompts.get(request.path_params["prompt"])
        model = model_of(request)
        about = {"prompt_id": prompt.prompt_id, "model": model}
        if context.hiding(request, prompt.prompt_id):
            return Json({**about, "hidden": HIDDEN, "top": [], "bottom": []})
        found = _features(context, request, prompt.prompt_id, model)
        top, bottom = (found[name].records() for name in ("top", "bottom"))
        return Json({**about, "hidden": None, "top": top, "bottom": bottom})

    return [
        Route("/api/prompt/{prompt}/features", features_json, methods=["GET"]),
        Route("/prompts", listing, methods=["GET"]),
        Route("/prompt/{prompt}", prompt, methods=["GET"]),
        Route("/fragments/prompt/{prompt}/features", features, methods=["GET"]),
    ]


def _query(request: Request) -> ListingQuery:
    asked = request.query_params
    verdict, state, only = (asked.get(name) for name in ("verdict", "state", "only"))
    return ListingQuery(
        search=asked.get("q", ""),
        verdict=verdict if verdict in VERDICTS else None,  # type: ignore[arg-type]
        flagged=True if only == "flagged" else None,
        divergent=True if only == "divergent" else None,
        category=asked.get("category") or None,
        state=state if state in STATES else None,  # type: ignore[arg-type]
        order="oldest" if asked.get("order") == "oldest" else "newest",
    )


def _shown(context: AppContext, request: Request, view: AttemptView) -> dict[str, Any]:
    hidden = context.hiding(request, view.prompt.prompt_id)
    labels = context.labels(request, view.prompt.prompt_id)
    pairs = context.store.results.pairs()
    folder = context.work.results / "experiments"
    rows = {a.pair: token_rows(a, labels, hide_judge=bool(hidden)) for a in view.pairs}
    return {
        "view": view,
        "prompt": view.prompt,
        "hidden": hidden,
        # Evil mass follows from the judge's labels, and so does a change of it.
        "experiments": () if hidden else steered(folder, view.prompt.prompt_id),
        "attempts": [
            {
                "attempt": attempt,
                "models": pairs.get(attempt.pair, {}),
                "rows": rows[attempt.pair],
                "largest": max((max(r.base, r.merged) for r in rows[attempt.pair]), default=1),
                "masses": masses(attempt, labels),
                "votes": _votes(context, view, attempt),
                "rollouts": _rollouts(context, view, attempt),
                "provenance": _provenance(context, attempt),
            }
            for attempt in view.pairs
        ],
    }


def _votes(context: AppContext, view: AttemptView, attempt: PairAttempt) -> dict[str, int]:
    """Judge -> stored votes."""
    found: dict[str, int] = {}
    for vote in context.store.results.votes(view.prompt.prompt_id, pair=attempt.pair):
        found[vote.judge] = found.get(vote.judge, 0) + 1
    return found


_FREE = "(the prompt alone)"


def _rollouts(
    context: AppContext, view: AttemptView, attempt: PairAttempt
) -> list[tuple[str, list[Rollout]]]:
    """(text of a candidate, or that there is none, continuations), where some were sampled."""
    if attempt.next_tokens is None:
        return []
    texts = {token.token_id: token.text for token in attempt.next_tokens.merged.tokens}
    found: dict[str, list[Rollout]] = {}
    for one in context.store.results.rollouts(view.prompt.prompt_id, attempt.pair):
        after = _FREE if one.token_id is None else texts.get(one.token_id, f"#{one.token_id}")
        found.setdefault(after, []).append(one)
    return list(found.items())


def token_rows(
    attempt: PairAttempt, labels: PromptLabels, *, hide_judge: bool
) -> tuple[TokenRow, ...]:
    """The union of both lists, in the order of merged."""
    if attempt.next_tokens is None:
        return ()
    lists: NextTokenPair = attempt.next_tokens
    base, counts = lists.base.by_id, {item.token_id: item for item in labels.labels}
    rows = []
    for token in lists.merged.tokens:
        other, known = base[token.token_id], counts.get(token.token_id)
        if known is not None and hide_judge and known.source == "judge":
            known = None
        judges = tuple(
            (j.judge, j.by_token[token.token_id])
            for j in attempt.judgements
            if token.token_id in j.by_token and not hide_judge
        )
        rows.append(
            TokenRow(
                token_id=token.token_id,
                text=token.text,
                base=other.probability,
                merged=token.probability,
                base_rank=other.rank,
                merged_rank=token.rank,
                label=known.label if known else None,
                by=known.source if known else None,
                judges=judges,
                listed=min(token.rank, other.rank) <= lists.merged.top_k,
            )
        )
    return tuple(rows)


def masses(attempt: PairAttempt, labels: PromptLabels) -> dict[str, dict[str, float]]:
    """Model -> probability mass by label, over the union of both lists."""
    if attempt.next_tokens is None:
        return {}

    def of(tokens: NextTokens) -> dict[str, float]:
        found = dict.fromkeys(("evil", "safe", "unsure", "unlabelled"), 0.0)
        for token in tokens.tokens:
            found[labels.by_token.get(token.token_id, "unlabelled")] += token.probability
        return found | {"other": max(0.0, 1 - sum(found.values()))}

    return {"base": of(attempt.next_tokens.base), "merged": of(attempt.next_tokens.merged)}


def _provenance(context: AppContext, attempt: PairAttempt) -> dict[str, Any]:
    """Model -> what is recorded of its graph's making."""
    found = {}
    for record in attempt.graphs:
        try:
            found[f"{record.model} {record.key[:12]}"] = context.work.graphs.provenance(record.key)
        except EmCircuitsError as error:
            found[f"{record.model} {record.key[:12]}"] = {"missing": str(error)}
    return found


def _features(
    context: AppContext, request: Request, prompt_id: str, model: ModelName
) -> dict[str, Any]:
    record = context.work.graph_record(prompt_id, model, context.known_pair(request))
    labels = context.labels(request, prompt_id)
    scores = stored_scores(context.work.graphs.load(record.key), Scoring.GRADIENT)
    ranking = scores.ranked(Contrast.from_labels(labels.by_token))
    top, bottom = ranking.top(FEATURES_SHOWN), ranking.bottom(FEATURES_SHOWN)
    largest = max((abs(f.contrast) for f in (*top, *bottom)), default=1.0) or 1.0
    return {
        "top": top,
        "bottom": bottom,
        "largest": largest,
        "n": len(ranking),
        "source": labels.source,
    }
