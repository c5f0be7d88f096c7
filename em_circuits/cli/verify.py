"""``em-circuits verify``: everything under a root compared with what was written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from em_circuits.audit.claims import CheckedClaim, check_claims
from em_circuits.cli.graph_arguments import graph_store
from em_circuits.cli.output import Printed, emit, prints
from em_circuits.cli.session import Session, pass_session
from pivotal_tokens.artefacts import changed_since_written
from pivotal_tokens.errors import WorkFailed
from pivotal_tokens.store.chain import Checked


class Damage(Printed):
    """Something that is not what was written."""

    what: str
    """``store``, ``hash``, ``graph`` or ``artefact``."""
    path: str
    problem: str


class Verified(Printed):
    """What was compared, and what is damaged."""

    ok: bool
    values: int
    """Values of the store that were read; of a damaged one as many as are known to be whole: 0."""
    label_events: int
    """Label events that were compared with their hash."""
    next_tokens: int
    """Prompts' next tokens that were compared with theirs."""
    unhashed: int
    """Label events and next tokens of an older version, which wrote no hash."""
    graphs: int
    artefacts: int
    """Files under results/ with a provenance."""
    damages: list[Damage]


class VerifiedClaims(Printed):
    """Claims beside their artefacts."""

    ok: bool
    claims: list[CheckedClaim]


@click.command(epilog="Example: em-circuits verify --json")
@click.option(
    "--claims",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Instead compare the claims of this file (sentence, artefact, figure) with the artefacts.",
)
@prints(Verified | VerifiedClaims)
@pass_session
def verify(session: Session, claims: Path | None, as_json: bool) -> None:
    """Compare the store, every graph and every result with what was written.

    Exit status 1 if something is not what was written, or a claim does not hold.
    """
    if claims is not None:
        _verify_claims(claims, as_json)
        return
    values, hashed, damages = _store(session)
    graphs = graph_store(session).verify()
    damages += [
        Damage(what="graph", path=str(one.path), problem=one.problem)
        for one in graphs
        if one.problem
    ]
    artefacts = 0
    for sidecar in sorted((session.root / "results").rglob("*.provenance.json")):
        path = sidecar.with_name(sidecar.name.removesuffix(".provenance.json"))
        artefacts += 1
        if not path.is_file():
            damages.append(Damage(what="artefact", path=str(path), problem="is not there"))
        elif changed_since_written(path):
            problem = "has changed since it was written"
            damages.append(Damage(what="artefact", path=str(path), problem=problem))
    emit(
        Verified(
            ok=not damages,
            values=values,
            label_events=hashed.label_events,
            next_tokens=hashed.next_tokens,
            unhashed=hashed.unhashed,
            graphs=len(graphs),
            artefacts=artefacts,
            damages=damages,
        ),
        as_json,
    )
    if damages:
        raise WorkFailed(f"{len(damages)} not what was written, first {damages[0].path}")


def _verify_claims(path: Path, as_json: bool) -> None:
    found = check_claims(path)
    wrong = [one for one in found if one.problem]
    emit(VerifiedClaims(ok=not wrong, claims=found), as_json, _describe_claims)
    if wrong:
        first = wrong[0]
        raise WorkFailed(
            f"{len(wrong)} of {len(found)} claims do not hold, first {first.sentence[:60]!r}: "
            f"{first.problem}"
        )


def _describe_claims(verified: VerifiedClaims) -> Iterator[str]:
    for one in verified.claims:
        yield f"{'holds' if one.problem is None else one.problem}: {one.sentence}"
    yield f"{sum(one.problem is None for one in verified.claims)} of {len(verified.claims)} hold"


def _store(session: Session) -> tuple[int, Checked, list[Damage]]:
    """Values that were read of the store, what has hashes, and what is wrong with it."""
    hashed, values = Checked(), 0
    damages: list[Damage] = []
    if session.options["store"] is None and not session.default_store.exists():
        return values, hashed, damages
    try:
        with session.open_store() as store:
            hashed = store.chains.check()
            damages = [
                Damage(what="hash", path=session.store_name, problem=problem)
                for problem in hashed.problems
            ]
            values = store.check()
    except WorkFailed as error:
        damages.append(Damage(what="store", path=session.store_name, problem=str(error)))
    return values, hashed, damages
