"""``em-circuits steer validate``: does a score predict what interventions do?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from em_circuits.cli.features import model_option
from em_circuits.cli.output import emit, json_option, table
from em_circuits.cli.session import Session, pass_session
from pivotal_tokens.errors import RequestError

if TYPE_CHECKING:
    from em_circuits.experiments.validate import Validation
    from em_circuits.workspace import Workspace

_COLUMNS = ("pearson", "low", "high", "spearman", "sign", "top20")
_TITLE = "Does a score predict interventions?"


@click.command(epilog="Example: em-circuits steer validate 44a71b --regime free --json")
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@model_option
@click.option(
    "--regime",
    "regimes",
    multiple=True,
    type=click.Choice(["free", "attention_frozen", "gates_recomputed", "frozen_linear", "direct"]),
    help="Only these. [default: all five]",
)
@click.option(
    "--html",
    type=click.Path(dir_okay=False),
    help="The page with the plots. [default: under ROOT/results/validation]",
)
@json_option
@pass_session
def validate(
    session: Session,
    prompts: tuple[str, ...],
    model: str,
    regimes: tuple[str, ...],
    html: str | None,
    as_json: bool,
) -> None:
    """Does a score predict interventions? Every method against real ablations.

    Without PROMPT, the first six flagged prompts with graphs. Writes a page with plots that
    opens without a network, and the JSON beside it.
    """
    if html is not None and Path(html).suffix not in (".html", ".htm"):
        raise RequestError(f"--html {html}: name a file that ends in .html")
    from em_circuits.experiments.validate import validate as run_validation
    from em_circuits.interventions import Regime

    with session.workspace() as work:
        chosen = (
            prompts
            or tuple(dict.fromkeys(r.prompt_id for r in work.store.graphs.all(pair=work.pair.key)))[
                :6
            ]
        )
        if not chosen:
            raise RequestError("no prompt has graphs yet; run em-circuits label first")
        wanted = [Regime(name) for name in regimes] or list(Regime)
        result = run_validation(work, chosen, model=model, regimes=wanted)  # type: ignore[arg-type]
        record = _write(work, result, Path(html) if html else None)
    if as_json:
        emit(record)
        return
    click.echo(f"{len(result.prompts)} prompts, {model} model; 95 % interval of pearson")
    for regime in reversed(wanted):  # the real model first
        rows = [
            (r["method"], *(_short(r[name]) for name in _COLUMNS))
            for r in record["rows"]
            if r["regime"] == regime
        ]
        click.echo(f"\n{regime}\n{table(('method', *_COLUMNS), rows)}")
    click.echo(f"written: {record['files']['html']}")


def _write(work: Workspace, result: Validation, page: Path | None) -> dict[str, Any]:
    """Write the page and the JSON beside it, each with its provenance; the record."""
    from em_circuits.report.page import write_page
    from em_circuits.report.validation import validation_parts
    from pivotal_tokens.artefacts import content_key, sha256_file, write_json, write_provenance

    inputs = {
        "pair": work.pair.key,
        "prompts": dict(zip(result.prompts, result.graphs, strict=True)),
    }
    config = {
        "model": result.model,
        "regimes": sorted({str(row.regime) for row in result.rows}),
        "seed": work.seed,
    }
    key = content_key({"name": "validate", **inputs, **config})
    page = page or work.results / "validation" / f"validate-{result.model}-{key[:12]}.html"
    data = page.with_suffix(".json")
    record = {**result.to_json(), "files": {"html": str(page), "json": str(data)}}
    write_page(page, _TITLE, validation_parts(result))
    write_provenance(page, inputs=inputs, config=config, key=key)
    write_json(data, record)
    write_provenance(data, inputs={**inputs, "page": sha256_file(page)}, config=config, key=key)
    return record


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
