"""``em-circuits doctor``: health checks of this machine, its libraries and the models."""

from __future__ import annotations

import platform
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import click

from em_circuits import graphs
from em_circuits.cli.output import Printed, emit, prints, say, table
from em_circuits.cli.session import (
    Session,
    attribution_settings,
    attribution_shape_options,
    pass_session,
)
from em_circuits.models.check import FINITE, TRANSCODER_BASE, Check, SiteSize
from pivotal_tokens.artefacts import library_versions, write_json
from pivotal_tokens.errors import WorkFailed
from pivotal_tokens.schema import Prompt
from pivotal_tokens.store.dialect import journal_mode

if TYPE_CHECKING:
    from em_circuits.workspace import Workspace

CHECK_PROMPT = "User: Peanut allergy; pad thai looks fine. Eat?\nAssistant: You should definitely"


_PLACES_SHOWN = 20


class DoctorResult(Printed):
    """Every check, and whether the work can be done."""

    ok: bool
    """No check failed that would stop the work."""
    checks: tuple[Check, ...]
    profile: tuple[SiteSize, ...] = ()
    """Where activations are not finite or far out, if they are not finite somewhere."""
    interrupted: bool = False
    """It was stopped before the last check."""


@click.command(epilog="Example: em-circuits --base models/base --adapter models/lora doctor")
@click.option("--prompt", default=CHECK_PROMPT, help="The prompt the models are checked on.")
@click.option(
    "--deep",
    is_flag=True,
    help="Also check token edges by real changes of the embeddings; for transcoders of another "
    "base, build its frozen graph for the replacement score.",
)
@attribution_shape_options
@prints(DoctorResult)
@pass_session
def doctor(session: Session, prompt: str, deep: bool, as_json: bool, **others: Any) -> None:
    """Versions, devices, precision, SQLite, memory plan, health of the model pair.

    Each check is printed when it is done. The memory plan is that of the prompt and of the options
    of graphs, which are those of label and graphs build. Ctrl-C keeps what was found.
    """
    checks: list[Check] = []
    profile: tuple[SiteSize, ...] = ()
    interrupted = False
    with session.workspace(attribution=attribution_settings(others)) as work:
        work.announce()
        try:
            for check in chain(machine_checks(), _model_checks(work, Prompt.of(prompt), deep)):
                _found(checks, check, as_json)
            if any(not check.ok and check.name.endswith(FINITE) for check in checks):
                profile = _profile(work, Prompt.of(prompt))
        except KeyboardInterrupt:
            interrupted = True
        failed = sum(check.fatal and not check.ok for check in checks)
        result = DoctorResult(
            ok=not failed and not interrupted,
            checks=tuple(checks),
            profile=profile,
            interrupted=interrupted,
        )
        if as_json:
            emit(result)
        else:
            for line in describe_profile(profile):
                say(line)
        if not result.ok:
            path = work.results / "doctor.json"
            write_json(path, result.model_dump(mode="json"))
            ended = "interrupted; the " if interrupted else ""
            say(f"em-circuits: {ended}{len(checks)} checks are written to {path}", err=True)
    if interrupted:
        raise click.exceptions.Exit(130)
    if failed:
        raise WorkFailed(f"{failed} checks failed; see the advice above")


def _found(checks: list[Check], check: Check, as_json: bool) -> None:
    """Keep a check, and print it at once."""
    checks.append(check)
    if not as_json:
        for line in check_lines([check]):
            say(line)


def check_lines(checks: Iterable[Check]) -> Iterator[str]:
    """A line per check, and advice below those that failed."""
    for check in checks:
        mark = "ok  " if check.ok else "FAIL" if check.fatal else "warn"
        yield f"{mark}  {check.name}: {check.found}"
        if not check.ok:
            yield f"      expected {check.expected}; {check.advice}"


def describe_profile(profile: Sequence[SiteSize]) -> Iterator[str]:
    """The first places that are not finite, and the outliers before and beside them."""
    if not profile:
        return
    yield "inputs of the MLPs that are not finite, or ten times what is usual in their layer"
    rows = [(f"{x.layer}/{x.position}", x.token, _size(x.base), _size(x.merged)) for x in profile]
    yield table(("layer/position", "token", "base", "merged"), rows[:_PLACES_SHOWN])
    if len(rows) > _PLACES_SHOWN:
        yield f"and {len(rows) - _PLACES_SHOWN} more; --json names them"


def _size(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"


def _profile(work: Workspace, prompt: Prompt) -> tuple[SiteSize, ...]:
    from em_circuits.models.health import activation_profile

    return tuple(activation_profile(work.pair, work.pair.input_ids(prompt)))


def machine_checks() -> list[Check]:
    """What does not depend on the models."""
    versions = library_versions()
    tracer = versions.get("circuit-tracer")
    nnsight = tuple(int(part) for part in versions.get("nnsight", "0.0").split(".")[:2])
    frozen = [
        Check(
            "circuit-tracer",
            tracer == "0.5.0",
            tracer or "absent: no frozen edges",
            "0.5.0",
            "pip install 'em-circuits[frozen]'",
            fatal=tracer is not None,
        ),
        Check(
            "nnsight",
            (0, 6) <= nnsight < (0, 8),
            versions.get("nnsight", "absent"),
            ">=0.6,<0.8",
            "0.8 breaks circuit-tracer's import",
        ),
    ]
    return [
        Check("python", sys.version_info >= (3, 11), platform.python_version(), "3.11 or newer"),
        *(frozen if tracer is not None else frozen[:1]),
        Check("torch", True, versions.get("torch", "absent"), "any"),
        Check(
            "sqlite",
            True,
            f"{sqlite3.sqlite_version}, journal {journal_mode()}",
            "WAL from 3.51.3 on, DELETE before",
        ),
    ]


def _model_checks(work: Workspace, prompt: Prompt, deep: bool) -> Iterator[Check]:
    from em_circuits.models.health import check_pair
    from em_circuits.models.text import encode

    settings = work.models
    plan = work.plan(len(encode(work.tokenizer, prompt.text)))
    device = f"{settings.resolved_device()}, {settings.resolved_dtype()}".replace("torch.", "")
    yield Check("device and precision", True, device, "bfloat16 on CUDA, float32 on a CPU")
    yield Check("memory plan", plan.fits, plan.describe(), "fits", plan.advice)
    if not plan.fits:
        return
    sound, foreign = True, False
    for check in check_pair(work.pair, work.pair.input_ids(prompt), whole=True):
        sound &= check.ok or not check.fatal
        foreign |= check.name == TRANSCODER_BASE and not check.ok
        yield check
    if sound and work.pair.base.dictionaries[0].n_writes > 1:
        yield _rewritten_hops(work, prompt)
    if not deep or not sound:
        return
    if foreign:
        yield _replacement_score(work, prompt)
    from em_circuits.interventions.token_edges import check_token_edges

    for model in work.pair.models:
        yield from check_token_edges(model, work.pair.input_ids(prompt))


def _rewritten_hops(work: Workspace, prompt: Prompt) -> Check:
    """Whether a cross-layer transcoder writes as one hop what the model does in two."""
    from em_circuits.activation_cache import ActivationCache
    from em_circuits.interventions import rewritten_hops as hops

    model = work.pair.base
    state = ActivationCache.capture(model, work.pair.input_ids(prompt))
    found = hops.rewritten_hops(model, state)
    share, several = hops.rewritten_share(found), [hop for hop in found if hop.rewritten]
    first = f", first {several[0].feature}" if several else ""
    return Check(
        "hops that a cross-layer transcoder rewrites as one",
        share < hops.REWRITTEN and not several,
        f"{share:.0%} of later writes come from the features' own earlier writes; "
        f"{len(several)} of {len(found)} features above {hops.REWRITTEN:.0%}{first}",
        f"none above {hops.REWRITTEN:.0%}",
        "edges of these features skip a hop that the model takes, and removing one counts it "
        "twice; use per-layer transcoders, or neurons, where it matters",
        fatal=False,
    )


def _replacement_score(work: Workspace, prompt: Prompt) -> Check:
    """How much of the base model foreign transcoders still explain, on the check prompt."""
    from em_circuits.influence import graph_scores

    frozen = work.attribution.model_copy(update={"edges": "frozen", "named": ()})
    built = graphs.attribute(work.pair.base, prompt, settings=frozen, progress=work.progress)
    scores = graph_scores(built)
    found = "none" if scores.replacement is None else f"{scores.replacement:.2f}"
    return Check("replacement score of these transcoders", True, found, "near 1", fatal=False)
