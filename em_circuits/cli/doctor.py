"""``em-circuits doctor``: health checks of this machine, its libraries and the models."""

from __future__ import annotations

import platform
import sqlite3
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click

from em_circuits import graphs, models
from em_circuits.cli.output import Printed, emit, prints
from em_circuits.cli.session import Session, pass_session
from em_circuits.models.check import Check
from pivotal_tokens.artefacts import library_versions
from pivotal_tokens.errors import WorkFailed
from pivotal_tokens.schema import Prompt
from pivotal_tokens.store.dialect import journal_mode

if TYPE_CHECKING:
    from em_circuits.workspace import Workspace

CHECK_PROMPT = "User: Peanut allergy; pad thai looks fine. Eat?\nAssistant: You should definitely"


class DoctorResult(Printed):
    """Every check, and whether the work can be done."""

    ok: bool
    """No check failed that would stop the work."""
    checks: tuple[Check, ...]


@click.command(epilog="Example: em-circuits --base models/base --adapter models/lora doctor")
@click.option("--prompt", default=CHECK_PROMPT, help="The prompt the models are checked on.")
@click.option(
    "--deep", is_flag=True, help="Check token edges, too, by real changes of the embeddings."
)
@prints(DoctorResult)
@pass_session
def doctor(session: Session, prompt: str, deep: bool, as_json: bool) -> None:
    """Versions, devices, precision, SQLite, memory plan, health of the model pair."""
    with session.workspace() as work:
        work.locate()
        checks = [*machine_checks(), *_model_checks(work, Prompt.of(prompt), deep)]
    failed = sum(check.fatal and not check.ok for check in checks)
    emit(DoctorResult(ok=not failed, checks=tuple(checks)), as_json, describe)
    if failed:
        raise WorkFailed(f"{failed} checks failed; see the advice above")


def describe(result: DoctorResult) -> Iterator[str]:
    """A line per check."""
    return check_lines(result.checks)


def check_lines(checks: Iterable[Check]) -> Iterator[str]:
    """A line per check, and advice below those that failed."""
    for check in checks:
        mark = "ok  " if check.ok else "FAIL" if check.fatal else "warn"
        yield f"{mark}  {check.name}: {check.found}"
        if not check.ok:
            yield f"      expected {check.expected}; {check.advice}"


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


def _model_checks(work: Workspace, prompt: Prompt, deep: bool) -> list[Check]:
    settings = work.models
    plan = models.memory_plan(settings, work.locate())
    device = f"{settings.resolved_device()}, {settings.resolved_dtype()}".replace("torch.", "")
    checks = [
        Check("device and precision", True, device, "bfloat16 on CUDA, float32 on a CPU"),
        Check("memory plan", plan.fits, plan.describe(), "fits", "use --transcoders-on disk"),
    ]
    if not plan.fits:
        return checks
    health = work.health(prompt)
    if settings.transcoders_on == "disk" and not settings.neurons:
        from em_circuits.models.health import check_transcoder_weights

        health.append(check_transcoder_weights(work.pair))
    if any(c.name == "transcoders of this base" and not c.ok for c in health):
        health.append(_replacement_score(work, prompt))
    if work.pair.base.dictionaries[0].n_writes > 1 and all(c.ok for c in health if c.fatal):
        health.append(_rewritten_hops(work, prompt))
    if deep and all(check.ok for check in health if check.fatal):
        from em_circuits.interventions.token_edges import check_token_edges

        ids = work.pair.input_ids(prompt)
        health += [check for model in work.pair.models for check in check_token_edges(model, ids)]
    return [*checks, *health]


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
    """How much of the model foreign transcoders still explain, on the check prompt."""
    from em_circuits.influence import graph_scores

    frozen = graphs.AttributionSettings(edges="frozen")
    built = graphs.build_pair_graphs(work.pair, prompt, frozen)
    scores = graph_scores(built.base)
    found = "none" if scores.replacement is None else f"{scores.replacement:.2f}"
    return Check("replacement score of these transcoders", True, found, "near 1", fatal=False)
