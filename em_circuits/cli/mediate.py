"""``em-circuits features mediate``: which features carry the shift from base to merged?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from em_circuits.cli.output import emit, json_option, table
from em_circuits.cli.session import Session, pass_session
from pivotal_tokens.errors import RequestError

if TYPE_CHECKING:
    from em_circuits.cache import CachedTable
    from em_circuits.experiments.mediation import MediationRecord

_CURVE = ("features", "share", "evil mass", "random", "low", "high")


@click.command(epilog="Example: em-circuits features mediate --all --hold-out category")
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@click.option("--all", "everything", is_flag=True, help="Every labelled prompt with a contrast.")
@click.option(
    "--order",
    type=click.Choice(["integrated", "gradient", "scan"]),
    default="integrated",
    show_default=True,
    help="One prompt: take features by their part of the joint effect, by gradient, or each "
    "really set alone.",
)
@click.option(
    "--scan",
    is_flag=True,
    help="Really set each feature alone. One prompt: --order scan; several: how well does the "
    "gradient predict it?",
)
@click.option(
    "--direction",
    type=click.Choice(["sufficiency", "necessity"]),
    default="sufficiency",
    show_default=True,
    help="Merged values into the base, or the base's into the merged model.",
)
@click.option(
    "--hold-out",
    type=click.Choice(["prompt", "category"]),
    default="prompt",
    show_default=True,
    help="Several prompts: choose features on the others, or on those of other categories.",
)
@click.option(
    "--own-domain", help="Category that the fine-tune was trained on. [the organism's: medical]"
)
@click.option("--random", "n_random", default=20, show_default=True, help="Matched random draws.")
@click.option("--top", type=click.IntRange(min=1), help="Only the first N features.")
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Several prompts: the page. [default: beside the table under ROOT/results/features]",
)
@json_option
@pass_session
def mediate(
    session: Session,
    prompts: tuple[str, ...],
    everything: bool,
    top: int | None,
    html: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Set features of the base to their merged values: how much of the shift comes back?

    With one PROMPT its own features are taken, which is in-sample. With several, or --all, features
    are keyed by (layer, feature id) and chosen on other prompts than they are judged on. With
    --direction necessity: of the merged model to the base's values; how much goes away?
    """
    if everything == bool(prompts):
        raise RequestError("give PROMPT, several PROMPTs, or --all")
    if len(prompts) == 1:
        _one(session, prompts[0], top, as_json, options)
    else:
        _several(session, prompts, top, html, as_json, options)


def _one(
    session: Session, prompt: str, top: int | None, as_json: bool, options: dict[str, Any]
) -> None:
    with session.on_prompts(prompt) as work:
        from em_circuits.experiments.analyse import mediate_prompt

        prompt_id, mediation = mediate_prompt(
            work,
            prompt,
            order="scan" if options["scan"] else options["order"],
            direction=options["direction"],
            n_random=options["n_random"],
        )
    record = mediation.to_json(prompt_id, top=top)
    if as_json:
        emit(record)
        return
    shift, mass = record["shift"], record["evil_mass"]
    click.echo(
        f"{prompt_id}: contrast {shift['base']:.2f} -> {shift['merged']:.2f} logits, "
        f"evil mass {mass['base']:.2f} -> {mass['merged']:.2f}"
    )
    rows = [
        (p["k"], p["share"], p["evil_mass"], p["random_share"], p["random_low"], p["random_high"])
        for p in record["cumulative"]
    ]
    click.echo(table(_CURVE, rows))
    shares = record["shares"]
    click.echo("shares: " + ", ".join(f"{name} {_share(v)}" for name, v in shares.items()))
    if shares["features"] is None:
        click.echo("no share: the contrast moves by less than 0.5 logit")


def _several(
    session: Session,
    prompts: tuple[str, ...],
    top: int | None,
    html: Path | None,
    as_json: bool,
    options: dict[str, Any],
) -> None:
    if options["order"] != "integrated":
        raise RequestError("--order is for one PROMPT: over prompts features go by integrated")
    own = options["own_domain"] or ("medical" if session.embedded else None)
    with session.on_prompts(*prompts):
        from em_circuits.experiments.mediation import (
            MediationRecord,
            MediationRequest,
            mediate_over_prompts,
        )

    request = MediationRequest(
        hold_out=options["hold_out"],
        direction=options["direction"],
        own_category=own,
        scan=options["scan"],
        n_random=options["n_random"],
        seed=session.seed,
    )
    with session.workspace() as work:
        found = mediate_over_prompts(work, prompts, request)
    record = MediationRecord.model_validate(found.record)
    page = _page(found, record, html)
    if as_json:
        emit({**found.head(), "page": str(page), "features": found.rows()[:top]})
        return
    _describe(record, found.rows()[: top or 20])
    click.echo(f"{'kept' if found.reused else 'written'}: {found.parquet_path}\npage: {page}")


def _page(found: CachedTable, record: MediationRecord, html: Path | None) -> Path:
    from em_circuits.report.mediation import TITLE, mediation_parts
    from em_circuits.report.page import write_page
    from pivotal_tokens.artefacts import write_provenance

    page = html or found.json_path.with_suffix(".html")
    if html is None and found.reused and page.is_file():
        return page
    write_page(page, TITLE, mediation_parts(record, found.rows()))
    write_provenance(page, inputs={"table": found.key}, config={}, key=found.key)
    return page


def _describe(record: MediationRecord, features: Sequence[dict[str, Any]]) -> None:
    click.echo(record.sentence + "\n")
    rows = []
    for p in record.cumulative:
        random = (p.random.share, p.random.high) if p.random else (None, None)
        rows.append(("all" if p.k is None else p.k, p.share, p.low, p.high, *random))
    click.echo(table(("ids", "share", "low", "high", "random", "random high"), rows) + "\n")
    groups = [(g.group, g.prompts, g.share, g.low, g.high) for g in record.groups]
    click.echo(table(("20 ids in", "prompts", "share", "low", "high"), groups) + "\n")
    columns = ("layer", "feature", "share", "low", "high", "prompts", "same_sign")
    click.echo(table(columns, [tuple(row[name] for name in columns) for row in features]))
    if record.left_out:
        click.echo(f"left out: {len(record.left_out)} prompts (--json says why)")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
