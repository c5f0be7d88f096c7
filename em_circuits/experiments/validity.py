"""Validity cards: what a claim "these nodes carry it" is worth, beside simple circuits of its size.

Circuits are sets of nodes that stand for themselves on every prompt (``LAYER/ID``). On each prompt
they are really kept or removed (`em_circuits.interventions.circuits`); over prompts a share is a
ratio of sums with a bootstrap interval. Beside the circuit stand, chosen on the same prompts and of
the same size: matched random ids, and the first by magnitude, gradient and integrated gradient.

    card = validity_card(work, [], ValidityRequest(nodes="top:20"))
    card.tier, card.necessity.share, [check.name for check in card.checks if not check.passed]

``top:N`` is chosen on other prompts than it is judged on: on those of other categories, or, over
all prompts, on one half of the categories for the other. Curves are those of circuit benchmarks
(MIB, Mueller et al. 2025, arXiv:2504.13151): faithfulness at .1 % to 100 % of all nodes, CPR the
area under it and CMD the area between it and 1, both by the trapezoid rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from em_circuits.cache import read_model
from em_circuits.coordinates import unique_rows
from em_circuits.experiments.aggregate import ChosenPrompt, choose_shown
from em_circuits.experiments.cases import UnusedPrompt
from em_circuits.experiments.circuit_tests import equivalence_p, independence_p, minimality_p
from em_circuits.experiments.shares import Share
from em_circuits.experiments.validity_settings import (
    THRESHOLDS,
    CardThresholds,
    Chooser,
    ValidityRequest,
)
from em_circuits.experiments.validity_verdict import (
    ChoiceStability,
    CircuitTest,
    ClaimShare,
    FaithfulnessCurve,
    NodeContribution,
    SideEffect,
    ValidityCard,
    card_checks,
    card_sentence,
    tier_of,
)
from em_circuits.feature import Feature, FeatureChoice, FeatureId
from em_circuits.interventions.circuits import CircuitRuns
from em_circuits.interventions.greedy_selection import select_greedily
from em_circuits.interventions.matched_controls import Pool, matched_draws
from em_circuits.interventions.patching import ActivationPatch
from em_circuits.models import ModelPair
from em_circuits.progress import Progress, no_progress, tracked
from em_circuits.workspace import Workspace
from pivotal_tokens.artefacts import content_key, write_json, write_provenance
from pivotal_tokens.errors import RequestError, WorkFailed

FORMULA = 2
FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Sizes of the curves, as shares of all nodes: those of MIB's circuit track."""
BASELINES = ("magnitude", "gradient", "integrated")
SEARCHED_ON = 8
"""Most prompts on which a search measures its steps."""
SEARCH_CANDIDATES = 40
_RANDOM_CURVES = 5

Key = tuple[int, ...]
"""(layer, id), or (layer, position, id) where a node is named with its position."""


def validity_card(
    work: Workspace,
    prefixes: Sequence[str],
    request: ValidityRequest,
    *,
    thresholds: Path = THRESHOLDS,
) -> tuple[ValidityCard, Path]:
    """The card of a circuit on stored prompts, or the stored one of equal inputs.

    Args:
        work: Its models are run.
        prefixes: Ids of prompts on which the circuit is judged; none means every labelled one.
        request: The circuit.
        thresholds: File that says what is asked of it.

    Returns:
        The card, and the file that it is kept in.

    Raises:
        RequestError: A node, or a prompt that was named, will not do.
        WorkFailed: No prompt has a shift.
    """
    asked = CardThresholds.read(thresholds)
    choice, by_position = request.choice, request.by_position
    if by_position and len(prefixes) != 1:
        raise RequestError("--nodes LAYER/POSITION/ID is of one PROMPT; over prompts give LAYER/ID")
    judged, left_out = choose_shown(work, prefixes)
    pool = judged if choice.by == "name" or not prefixes else choose_shown(work, [])[0]
    inputs = {
        "formula": FORMULA,
        "pair": work.pair_key,
        "request": request.model_dump(mode="json"),
        "thresholds": asked.model_dump(),
        "prompts": [one.identity() for one in judged],
        "pool": [one.identity() for one in pool],
    }
    key = content_key(inputs)
    path = work.results / "validity" / f"card-{key[:12]}.json"
    stored = read_model(path, ValidityCard, key)
    if stored is not None:
        return stored, path
    every = {one.prompt.prompt_id: one for one in (*judged, *pool)}
    of_prompts = _paraphrased(request, every)  # what is refused is, before anything runs
    work.require_healthy(judged[0].prompt)
    subjects = {
        prompt_id: subject
        for prompt_id, one in tracked(list(every.items()), "captures", work.progress)
        if (subject := _subject(work.pair, one, request, by_position)) is not None
    }
    mine = [subjects[p] for one in judged if (p := one.prompt.prompt_id) in subjects]
    left_out += [
        UnusedPrompt(prompt_id=one.prompt.prompt_id, reason="the shift is too small")
        for one in judged
        if one.prompt.prompt_id not in subjects
    ]
    if not mine:
        raise WorkFailed("no prompt has a shift of half a logit: nothing is there to be carried")
    reworded, without = _reworded(work.pair, every, request, of_prompts)
    left_out += [
        UnusedPrompt(prompt_id=prompt_id, reason="a paraphrase's shift is too small")
        for prompt_id in without
    ]
    card = _Card(work.pair, mine, list(subjects.values()), choice, request, reworded, work.progress)
    made = card.made(key, asked, content_key(asked.model_dump()), tuple(left_out))
    write_json(path, made.model_dump(mode="json"))
    write_provenance(path, inputs=inputs, config=request.model_dump(mode="json"), key=key)
    return made, path


@dataclass(frozen=True, eq=False)
class CardPrompt:
    """One prompt of a card: its runs, and its nodes by their keys."""

    prompt_id: str
    category: str | None
    runs: CircuitRuns
    keys: tuple[Key, ...]
    """Of the nodes, each once."""
    of: Tensor
    """Number of its key, by coordinate."""

    @classmethod
    def of_runs(
        cls, prompt_id: str, category: str | None, runs: CircuitRuns, *, by_position: bool = False
    ) -> CardPrompt:
        columns = runs.coordinates if by_position else runs.coordinates[:, ::2]
        distinct, of = unique_rows(columns)
        return cls(prompt_id, category, runs, tuple(map(tuple, distinct.tolist())), of)

    @cached_property
    def number(self) -> dict[Key, int]:
        return {key: i for i, key in enumerate(self.keys)}

    @cached_property
    def effects(self) -> dict[str, dict[Key, float]]:
        """Simple scores by key, summed over positions, as shares of the shift."""
        found = {}
        for name, score in self.runs.scores().items():
            sums = torch.zeros(len(self.keys)).index_add_(0, self.of, score())
            unit = 1.0 if name == "magnitude" else self.runs.shift
            found[name] = dict(zip(self.keys, (sums / unit).tolist(), strict=True))
        return found

    def expand(self, keys: Sequence[Key]) -> Tensor:
        """Coordinates of some keys."""
        mine = torch.tensor([self.number[key] for key in keys if key in self.number])
        return torch.isin(self.of, mine.long()).nonzero()[:, 0]

    def both(self, sets: Sequence[Sequence[Key]]) -> Float[Tensor, "two set"]:
        """Logits that go with each set, and that it brings."""
        expanded = [self.expand(one) for one in sets]
        whole, reference = self.runs.ends
        gone = whole - self.runs.removed(expanded)
        return torch.stack([gone, self.runs.kept(expanded) - reference]).double()


def _subject(
    pair: ModelPair, one: ChosenPrompt, request: ValidityRequest, by_position: bool
) -> CardPrompt | None:
    found = _runs_of(pair, pair.input_ids(one.shown), one, request, by_position=by_position)
    return found if found.runs.measurable else None


def _runs_of(
    pair: ModelPair,
    ids: Int[Tensor, " pos"],
    one: ChosenPrompt,
    request: ValidityRequest,
    *,
    by_position: bool = False,
) -> CardPrompt:
    """A prompt, or other words for it, under its labels."""
    if request.reference == "base":
        runs = CircuitRuns.between(pair, ids, one.contrast.require())
    else:
        runs = CircuitRuns.alone(pair.model(request.model), ids, one.contrast.require())
    prompt = one.prompt
    return CardPrompt.of_runs(prompt.prompt_id, prompt.category, runs, by_position=by_position)


def _paraphrased(request: ValidityRequest, every: Iterable[str]) -> list[str]:
    """The prompt of each paraphrase.

    Raises:
        RequestError: If one is of none of the prompts, or of several.
    """
    found = []
    for one in request.paraphrases:
        ids = [prompt_id for prompt_id in every if prompt_id.startswith(one.prompt_id)]
        if len(ids) != 1:
            raise RequestError(
                f"--paraphrases: {one.prompt_id} begins the id of {len(ids)} prompts of the card"
            )
        found += ids
    return found


def _reworded(
    pair: ModelPair,
    every: Mapping[str, ChosenPrompt],
    request: ValidityRequest,
    of_prompts: Sequence[str],
) -> tuple[dict[str, list[CardPrompt]], list[str]]:
    """Prompt id -> its paraphrases in the order of the file; ids of those without a shift."""
    found: dict[str, list[CardPrompt]] = {}
    without = []
    for one, prompt_id in zip(request.paraphrases, of_prompts, strict=True):
        ids = pair.input_ids(pair.prompt(one.text))
        subject = _runs_of(pair, ids, every[prompt_id], request)
        if subject.runs.measurable:
            found.setdefault(prompt_id, []).append(subject)
        else:
            without.append(prompt_id)
    return found, without


def ranked_keys(prompts: Sequence[CardPrompt], by: str) -> list[Key]:
    """Keys by their mean score over prompts; 0 where a node is not there."""
    total: dict[Key, float] = {}
    for prompt in prompts:
        for key, value in prompt.effects[by].items():
            total[key] = total.get(key, 0.0) + value
    return sorted(total, key=lambda key: (-total[key], key))


def search_keys(prompts: Sequence[CardPrompt], n: int) -> list[Key]:
    """The circuit that does most, one node at a time, every step measured.

    Of the candidates by integrated gradient that one joins with which removing and keeping the set
    together move most of the shift, over at most `SEARCHED_ON` prompts.
    """
    candidates = ranked_keys(prompts, "integrated")[: max(SEARCH_CANDIDATES, 2 * n)]
    step = -(-len(prompts) // SEARCHED_ON)
    used = prompts[::step]

    def measure(sets: list[list[int]]) -> Tensor:
        named = [[candidates[i] for i in members] for members in sets]
        moved = sum(prompt.both(named).sum(0) for prompt in used)
        assert isinstance(moved, Tensor)
        return moved

    order = select_greedily(measure, n_candidates=len(candidates), k=n)
    return [candidates[i] for i in order]


def chosen_keys(prompts: Sequence[CardPrompt], by: Chooser, n: int) -> list[Key]:
    """``top:N`` of some prompts."""
    return search_keys(prompts, n) if by == "search" else ranked_keys(prompts, by)[:n]


@dataclass(frozen=True, eq=False)
class _Fold:
    """Prompts that are judged, and those that circuits are chosen on."""

    judged: list[CardPrompt]
    chosen_on: list[CardPrompt]


def _folds(
    judged: list[CardPrompt], pool: list[CardPrompt], choice: FeatureChoice
) -> tuple[list[_Fold], str, bool]:
    """How choosing and judging are kept apart: folds, in words, and whether they are not."""
    if choice.by == "name":
        return [_Fold(judged, judged)], "nothing: its nodes were named", False
    categories = sorted({str(one.category) for one in judged})
    if len(pool) == len(judged) and len(categories) > 1:
        half = set(categories[::2])
        first = [one for one in judged if str(one.category) in half]
        second = [one for one in judged if str(one.category) not in half]
        return (
            [_Fold(first, second), _Fold(second, first)],
            "the other half of the categories",
            False,
        )
    others = [one for one in pool if str(one.category) not in categories]
    if others:
        return [_Fold(judged, others)], f"{len(others)} prompts of other categories", False
    names = {one.prompt_id for one in judged}
    others = [one for one in pool if one.prompt_id not in names]
    if others:
        return [_Fold(judged, others)], f"{len(others)} other prompts", False
    return [_Fold(judged, judged)], "the same prompts (in-sample)", True


class _Card:
    """The measurements behind a card."""

    def __init__(
        self,
        pair: ModelPair,
        judged: list[CardPrompt],
        pool: list[CardPrompt],
        choice: FeatureChoice,
        request: ValidityRequest,
        reworded: Mapping[str, list[CardPrompt]],
        progress: Progress = no_progress,
    ) -> None:
        self.pair, self.request, self.progress = pair, request, progress
        self.reworded = reworded
        self.choice, self.judged = choice, judged
        self.folds, self.chosen_on, self.in_sample = _folds(judged, pool, choice)
        self.circuits = [self._circuit(fold) for fold in self.folds]
        self.shifts = torch.tensor([one.runs.shift for one in self.ordered]).double()

    @property
    def ordered(self) -> list[CardPrompt]:
        """The judged prompts, fold by fold."""
        return [one for fold in self.folds for one in fold.judged]

    def _circuit(self, fold: _Fold) -> list[Key]:
        if self.choice.by == "top":
            found = chosen_keys(fold.chosen_on, self.request.chosen_by, self.choice.count)
        else:
            found = [tuple(one) for one in self.choice.named]
            seen = {key for one in fold.judged for key in one.keys}
            missing = [name for name in self.choice.named if tuple(name) not in seen]
            if missing:
                what = "changes" if self.request.reference == "base" else "is active"
                raise RequestError(f"node {missing[0]} {what} on none of the prompts")
        return found

    def made(
        self, key: str, asked: CardThresholds, digest: str, left_out: tuple[UnusedPrompt, ...]
    ) -> ValidityCard:
        """Measure, and say what it comes to."""
        parts = [
            self._judge(fold, circuit)
            for fold, circuit in zip(self.folds, self.circuits, strict=True)
        ]
        whole = {name: torch.cat([part[name] for part in parts], -1) for name in parts[0]}
        claims = [self._claim(whole, which) for which in (0, 1)]
        contributions = self._contributions(parts)
        minimality = sum(one.above_random for one in contributions) / len(contributions)
        side = self._side_effect()
        stability = self._stability()
        components = self._components()
        tests = self._tests(whole, contributions, asked.level)
        checks = card_checks(
            asked, claims, minimality, side, stability, components.get("errors"), self.in_sample
        )
        tier = tier_of(checks)
        n = self.choice.count
        above = whole["random"].amax(0)[0] < whole["own"][0, 0]
        return ValidityCard(
            key=key,
            nodes=tuple(tuple(map(_named, circuit)) for circuit in self.circuits),
            asked=str(self.choice),
            chosen_by=self.request.chosen_by if self.choice.by == "top" else "name",
            chosen_on=self.chosen_on,
            in_sample=self.in_sample,
            reference=self.request.reference,
            model="merged" if self.request.reference == "base" else self.request.model,
            prompts=tuple(one.prompt_id for one in self.ordered),
            left_out=left_out,
            shift=float(self.shifts.mean()),
            tier=tier,
            sentence=card_sentence(tier, n, len(self.ordered), claims, checks),
            checks=checks,
            necessity=claims[0],
            sufficiency=claims[1],
            fractions=FRACTIONS,
            curves=self._curves(parts),
            minimality=minimality,
            contributions=contributions,
            specificity=side,
            prompts_above_random=float(above.double().mean()),
            stability=stability,
            components=components,
            tests=tests,
            thresholds=asked,
            thresholds_sha256=digest,
        )

    def _judge(self, fold: _Fold, circuit: list[Key]) -> dict[str, Tensor]:
        """Everything that is measured of one circuit, the prompts on the last axis."""
        n = len(circuit)
        rankings = {name: ranked_keys(fold.chosen_on, name) for name in BASELINES}
        rest = set(circuit)
        own = [*circuit, *(key for key in rankings["integrated"] if key not in rest)]
        draws = self._random(fold, circuit)
        generator = np.random.default_rng(self.request.seed)
        every = sorted({key for one in fold.judged for key in one.keys})
        shuffled = [
            [every[i] for i in generator.permutation(len(every))] for _ in range(_RANDOM_CURVES)
        ]
        outside = [key for key in every if key not in rest]
        added = [
            outside[i]
            for i in generator.choice(
                len(outside), min(self.request.n_random, len(outside)), replace=False
            )
        ]
        found: dict[str, list[Tensor]] = {}
        for one in tracked(fold.judged, "circuits", self.progress):
            simple = [rankings[name][:n] for name in BASELINES]
            without = [[key for key in circuit if key != node] for node in circuit]
            inflated = [[*circuit, key] for key in added]
            both = one.both([circuit, *simple, *draws, *without, *inflated])
            ends = np.cumsum([0, 1, len(simple), len(draws), n, len(added)])
            names = ("own", "baselines", "random", "without", "inflated")
            for name, start, end in zip(names, ends[:-1], ends[1:], strict=True):
                found.setdefault(name, []).append(both[:, start:end].T)
            curves = torch.stack(
                [_curve(one, order) for order in (own, *rankings.values(), *shuffled)]
            )
            found.setdefault("curves", []).append(curves)
        return {name: torch.stack(values, -1) for name, values in found.items()}

    def _random(self, fold: _Fold, circuit: list[Key]) -> list[list[Key]]:
        """Matched random circuits, the same ids on every prompt."""
        amount: dict[Key, float] = {}
        norms: dict[Key, float] = {}
        for one in fold.judged:
            runs = one.runs
            change = (runs.on - runs.off).abs()
            sums = torch.zeros(len(one.keys)).index_add_(0, one.of, change)
            size = runs.scores()["magnitude"]()
            written = torch.zeros(len(one.keys)).index_add_(0, one.of, size)
            for key, a, w in zip(one.keys, sums.tolist(), written.tolist(), strict=True):
                amount[key] = amount.get(key, 0.0) + a
                norms[key] = w / a if a else 0.0
        keys = sorted(amount)
        pool = Pool(
            torch.tensor([key[0] for key in keys]),
            torch.tensor([amount[key] for key in keys]),
            torch.tensor([norms[key] for key in keys]),
        )
        number = {key: i for i, key in enumerate(keys)}
        mine = torch.tensor([number[key] for key in circuit if key in number])
        draws = matched_draws(pool, mine, n_draws=self.request.n_random, seed=self.request.seed)
        if draws is None:
            raise RequestError(
                f"--nodes {self.choice}: {len(keys)} nodes are there, too few others for a random "
                "circuit of this size; name fewer"
            )
        return [[keys[i] for i in draw] for draw in draws.tolist()]

    def _claim(self, whole: Mapping[str, Tensor], which: int) -> ClaimShare:
        """Necessity (0) or sufficiency (1)."""
        seed, shifts = self.request.seed, self.shifts
        own = whole["own"][0, which]
        simple = dict(zip(BASELINES, whole["baselines"][:, which], strict=True))
        return ClaimShare(
            **Share.of(own, shifts, seed).model_dump(),
            random=Share.of_draws(whole["random"][:, which].T, shifts),
            baselines={name: Share.of(one, shifts, seed) for name, one in simple.items()},
            lead={name: Share.of(own - one, shifts, seed) for name, one in simple.items()},
        )

    def _curves(self, parts: Sequence[Mapping[str, Tensor]]) -> tuple[FaithfulnessCurve, ...]:
        back = torch.cat([part["curves"] for part in parts], -1)
        shares = back.sum(-1) / self.shifts.sum()
        named = {
            "circuit": shares[0],
            **dict(zip(BASELINES, shares[1 : 1 + len(BASELINES)], strict=True)),
            "random": shares[1 + len(BASELINES) :].mean(0),
        }
        return tuple(curve_areas(name, values.tolist()) for name, values in named.items())

    def _contributions(self, parts: Sequence[Mapping[str, Tensor]]) -> tuple[NodeContribution, ...]:
        """Each node's own part, circuit by circuit."""
        found: list[NodeContribution] = []
        start = 0
        for fold, circuit, part in zip(self.folds, self.circuits, parts, strict=True):
            shifts = self.shifts[start : start + len(fold.judged)]
            start += len(fold.judged)
            own = part["own"][0].mean(0)
            lost = own - part["without"].mean(1)
            gained = (part["inflated"].mean(1) - own).sum(-1) / shifts.sum()
            shares = [Share.of(one, shifts, self.request.seed) for one in lost]
            sizes = torch.tensor([share.share for share in shares]).double()
            p = minimality_p(sizes.abs(), gained.abs())
            limit = float(torch.quantile(gained.abs(), 0.9))
            found += [
                NodeContribution(
                    node=_named(key),
                    contribution=float(size),
                    low=share.low,
                    high=share.high,
                    above_random=float(size) > limit,
                    p=float(chance),
                )
                for key, share, size, chance in zip(circuit, shares, sizes, p, strict=True)
            ]
        return tuple(sorted(found, key=lambda one: -one.contribution))

    def _side_effect(self) -> SideEffect | None:
        """Removal where the claim says nothing should happen."""
        if not self.request.unrelated or len(next(iter(self.circuits))[0]) > 2:
            return None
        claimed, unrelated, random = [], [], []
        words = self.judged[0].runs.contrast
        for fold, circuit in zip(self.folds, self.circuits, strict=True):
            draws = self._random(fold, circuit)[:_RANDOM_CURVES]
            claimed += [_moved(one, [circuit])[0] for one in fold.judged]
            for text in self.request.unrelated:
                ids = self.pair.input_ids(self.pair.prompt(text))
                runs = (
                    CircuitRuns.between(self.pair, ids, words)
                    if self.request.reference == "base"
                    else CircuitRuns.alone(self.pair.model(self.request.model), ids, words)
                )
                moved = _moved(CardPrompt.of_runs("", None, runs), [circuit, *draws])
                unrelated.append(moved[0])
                random += moved[1:]
        means = [float(np.mean(values)) for values in (claimed, unrelated, random)]
        return SideEffect(
            claimed=means[0],
            unrelated=means[1],
            random=means[2],
            ratio=means[1] / means[0] if means[0] else 0.0,
        )

    def _stability(self) -> ChoiceStability | None:
        if self.choice.by != "top":
            return None
        n, by = self.choice.count, self.request.chosen_by
        generator = np.random.default_rng(self.request.seed)
        fold, circuit = self.folds[0], self.circuits[0]
        pool = fold.chosen_on
        resampled = []
        for _ in tracked(range(self.request.resamples), "resamples", self.progress):
            drawn = sorted(set(generator.integers(len(pool), size=len(pool)).tolist()))
            resampled.append(chosen_keys([pool[i] for i in drawn], by, n))
        seeded = []
        for _ in tracked(range(self.request.seeds), "seeds", self.progress):
            # A search measures every so many prompts of a list: in another order, others.
            order = generator.permutation(len(pool)).tolist()
            seeded.append(_jaccard(chosen_keys([pool[i] for i in order], by, n), circuit))
        rounds = list(tracked(self._rounds(pool), "paraphrases", self.progress))
        reworded = [
            _jaccard(
                chosen_keys(other, by, n),
                circuit if len(own) == len(pool) else chosen_keys(own, by, n),
            )
            for own, other in rounds
        ]
        every = len({key for one in self.judged for key in one.keys})
        shared = n * n / every
        return ChoiceStability(
            resampled=_mean(_of_pairs(resampled)),
            halves=_jaccard(*self.circuits) if len(self.circuits) == 2 else None,
            seeds=_mean(seeded),
            paraphrases=_mean(reworded),
            chance=shared / (2 * n - shared),
            noise_floor=float(np.quantile(_of_pairs(self._random(fold, circuit)), 0.975)),
            circuits=len(resampled),
            paraphrased=len(rounds),
        )

    def _rounds(self, pool: Sequence[CardPrompt]) -> list[tuple[list[CardPrompt], ...]]:
        """Prompts as they were, and each by its first paraphrase; by its second, and so on."""
        longest = max((len(each) for each in self.reworded.values()), default=0)
        found: list[tuple[list[CardPrompt], ...]] = []
        for number in range(longest):
            own = [p for p in pool if len(self.reworded.get(p.prompt_id, ())) > number]
            if own:
                found.append((own, [self.reworded[p.prompt_id][number] for p in own]))
        return found

    def _components(self) -> dict[str, Share]:
        """What else carries the shift; only known between two models."""
        if self.request.reference != "base":
            return {}
        sums: dict[str, list[float]] = {}
        for one in self.ordered:
            runs = one.runs
            patch = ActivationPatch.of(
                self.pair, runs.caches[0].input_ids, runs.contrast, "sufficiency"
            )
            for name, logits in patch.component_logits().items():
                sums.setdefault(name, []).append(float(patch.recovered(logits[None])[0]))
        return {
            name: Share.of(torch.tensor(values).double(), self.shifts, self.request.seed)
            for name, values in sums.items()
        }

    def _tests(
        self,
        whole: Mapping[str, Tensor],
        contributions: Sequence[NodeContribution],
        level: float,
    ) -> tuple[CircuitTest, ...]:
        ends = torch.tensor([one.runs.ends for one in self.ordered]).double()
        gone, back = whole["own"][0]
        equal = equivalence_p(ends[:, 1] + back - ends[:, 0])
        apart = independence_p(ends[:, 0], ends[:, 0] - gone, seed=self.request.seed)
        least = min(one.p for one in contributions) * len(contributions)
        return (
            _test("equivalence", equal, level, "the circuit scores as the model does"),
            _test("independence", apart, level, "without it nothing of the model's score is left"),
            _test("minimality", min(1.0, least), level, "no node matters less than random ones"),
        )


def _curve(one: CardPrompt, order: Sequence[Key]) -> Float[Tensor, " size"]:
    """Logits that come back by the first nodes of a ranking, at each size."""
    place = {key: i for i, key in enumerate(order)}
    ranks = torch.tensor([place.get(key, len(order)) for key in one.keys])
    sizes = [max(1, round(fraction * len(one.keys))) for fraction in FRACTIONS]
    inside = ranks.argsort(stable=True)
    sets = [torch.isin(one.of, inside[:k]).nonzero()[:, 0] for k in sizes]
    return (one.runs.kept(sets) - one.runs.ends[1]).double()


def curve_areas(ranking: str, faithfulness: Sequence[float]) -> FaithfulnessCurve:
    """CPR and CMD of a curve over `FRACTIONS`, by the trapezoid rule."""
    values, sizes = (torch.tensor(one).double() for one in (tuple(faithfulness), FRACTIONS))
    return FaithfulnessCurve(
        ranking=ranking,
        faithfulness=tuple(faithfulness),
        cpr=float(torch.trapezoid(values, sizes)),
        cmd=float(torch.trapezoid((1 - values).abs(), sizes)),
    )


def _moved(one: CardPrompt, sets: Sequence[Sequence[Key]]) -> list[float]:
    """KL divergence of the next token, in nats, where each set is removed."""
    before = torch.log_softmax(one.runs.caches[0].logits.double(), -1)
    after = torch.log_softmax(one.runs.logits([one.expand(s) for s in sets]).double(), -1)
    return (before.exp() * (before - after.to(before))).sum(-1).tolist()


def _jaccard(one: Sequence[Key], other: Sequence[Key]) -> float:
    return len(set(one) & set(other)) / len(set(one) | set(other))


def _of_pairs(circuits: Sequence[Sequence[Key]]) -> list[float]:
    """Jaccard index of every two circuits."""
    return [_jaccard(one, other) for i, one in enumerate(circuits) for other in circuits[:i]]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _named(key: Key) -> str:
    return str(Feature(*key)) if len(key) == 3 else str(FeatureId(*key))


def _test(name: str, p: float | None, level: float, null: str) -> CircuitTest:
    rejected = None if p is None else p < level
    words = {None: "cannot be asked", True: "rejected", False: "not rejected"}
    return CircuitTest(test=name, p=p, rejected=rejected, says=f"{words[rejected]}: {null}")
