"""``em-circuits lora``: the adapter itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
from pydantic import Field

from em_circuits import experiments, report
from em_circuits.cli.options import Flag, Options, checked, options
from em_circuits.cli.output import emit, one_line, prints, say, table
from em_circuits.cli.session import Session, pass_session
from em_circuits.models.adapter import LoraAdapter
from em_circuits.models.source import locate
from pivotal_tokens.errors import RequestError

if TYPE_CHECKING:
    from em_circuits.experiments.lora import LoraGeometry

_PAGE = click.Path(dir_okay=False, path_type=Path)


class GeometryOptions(Options):
    """What an adapter is compared with, and how much is printed."""

    n_random: Annotated[int, Flag("--random", "n_random")] = 100
    """Random directions of equal norm beside each module's ranks."""
    drop: int = Field(default=256, ge=1)
    """Ranks that are really dropped; those of largest score, where there are more."""
    only_divergent: bool = False
    """Leave out prompts whose verdict is neither injection nor promotion."""
    top: int = Field(default=10, ge=1)
    """Lines of each table that are shown."""
    html: Annotated[Path | None, Flag(type=_PAGE)] = None
    """The page. [default: beside the table under ROOT/results/features]"""


@click.group()
def lora() -> None:
    """The adapter itself: its modules, what its ranks read, write and do."""


@lora.command(epilog="Example: em-circuits lora show path/to/adapter --json")
@click.argument("path", required=False)
@prints(LoraAdapter)
@pass_session
def show(session: Session, path: str | None, as_json: bool) -> None:
    """Rank, alpha, scaling and modules of the adapter at PATH; no model is loaded.

    PATH is a directory or a hub id. [default: the session's adapter]
    """
    emit(LoraAdapter.read(_located(session, path)), as_json, describe_adapter)


@lora.command(epilog="Example: em-circuits lora geometry --json")
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@options(GeometryOptions)
@prints("em_circuits.experiments.lora:GeometryOutput")
@pass_session
def geometry(
    session: Session, prompts: tuple[str, ...], options: GeometryOptions, as_json: bool
) -> None:
    """What each rank does on labelled prompts, and which features it reads and writes.

    Each rank is really dropped and compared with its first-order score; the adapter is run at
    multiples of its alpha; its directions are compared with transcoder features; all of it beside
    random directions of equal norm. Without PROMPT every labelled prompt with a contrast is taken.
    """
    if session.options["merged"] is not None:
        raise RequestError("the fine-tune was given as --merged; only an --adapter has ranks")
    with session.on_prompts(*prompts) as work:
        LoraAdapter.read(work.locate()["adapter"].path)
        request = checked(
            experiments.lora.GeometryRequest,
            {"n_random": options.n_random, "drop": options.drop, "seed": session.seed},
            {"n_random": "--random", "drop": "--drop"},
        )
        found = experiments.lora.lora_geometry(
            work, prompts, request, only_divergent=options.only_divergent
        )
        lines = found.rows()
        shown = lines[: report.lora.SHOWN]
        coverage = work.coverage(f"{one['feature_layer']}/{one['feature']}" for one in shown)
    record = experiments.lora.LoraGeometry.model_validate(found.record)
    page = options.html or found.json_path.with_suffix(".html")
    parts = report.lora.lora_parts(record, lines, coverage)
    source = {"inputs": {"table": found.key}, "config": {}, "key": found.key}
    report.page.write_page(page, report.lora.TITLE, parts, **source)
    if as_json:
        output = {**found.head(), "page": str(page), "alignments": lines[: options.top]}
        emit(experiments.lora.GeometryOutput.model_validate(output))
        return
    say("\n".join(describe_geometry(record, lines, options.top)))
    say(f"{'kept' if found.reused else 'written'}: {found.parquet_path}\npage: {page}")


def _located(session: Session, path: str | None) -> Path:
    if path is not None:
        return locate("PATH", path, kind="adapter").path
    if session.options["merged"] is not None:
        raise RequestError("the fine-tune was given as --merged; give PATH, or an --adapter")
    adapter = session.models().adapter
    if adapter is None:
        raise RequestError("no adapter: give PATH, or --adapter before the command")
    return locate("--adapter", adapter, kind="adapter").path


def describe_adapter(adapter: LoraAdapter) -> Iterator[str]:
    """The settings, then a line per module."""
    forms = [name for name, used in (("rsLoRA", adapter.rslora), ("DoRA", adapter.dora)) if used]
    yield f"{adapter.path}\nbase: {adapter.base_model or 'not named'}"
    yield (
        f"rank {adapter.rank}, alpha {adapter.alpha:g}{''.join(f', {form}' for form in forms)}, "
        f"bias {adapter.bias}; {len(adapter.modules)} modules, {adapter.parameters} parameters"
    )
    if adapter.modules_to_save:
        yield f"trained whole: {', '.join(adapter.modules_to_save)}"
    if adapter.unusual:
        yield f"not plain LoRA: {', '.join(adapter.unusual)}"
    header = ("module", "layer", "from 1", "rank", "alpha", "scaling", "numbers")
    rows = [
        (m.name, m.layer, m.layer_from_1, m.rank, f"{m.alpha:g}", m.scaling, m.parameters)
        for m in adapter.modules
    ]
    yield table(header, rows)


def describe_geometry(
    record: LoraGeometry, lines: Sequence[dict[str, Any]], top: int
) -> Iterator[str]:
    """The sentence, the sweep, the ranks, the agreement and the largest cosines."""
    yield record.sentence + "\n"
    header = ("alpha x", "contrast", "low", "high", "evil mass", "random", "low", "high")
    rows: list[Any] = [
        (
            p.scale,
            *(p.contrast.value, p.contrast.low, p.contrast.high),
            p.evil_mass.value,
            *(p.random_contrast.value, p.random_contrast.low, p.random_contrast.high),
        )
        for p in record.sweep
    ]
    yield table(header, rows) + "\n"
    names = {line.module: _short(line.module) for line in record.ranks}
    rows = []
    for line in record.ranks[:top]:
        effect = (line.effect.value, line.effect.low, line.effect.high) if line.effect else ()
        shown = (*effect, *([None] * (3 - len(effect))))
        rows.append((names[line.module], line.rank, *shown, line.score, line.score_quantile))
    yield table(("module", "rank", "dropped", "low", "high", "gradient", "> random"), rows) + "\n"
    rows = []
    for item in record.agreement:
        figures = [item.statistics[name].value for name in ("pearson", "spearman", "sign")]
        rows.append((item.method, *figures, item.pooled.pearson, item.pooled.spearman))
    yield table(("score", "Pearson", "Spearman", "sign", "pooled P", "pooled S"), rows) + "\n"
    yield from _cosines(lines[:top])
    for line in record.ranks[: min(top, 3)]:
        yield f"{names[line.module]} rank {line.rank} answers most to"
        yield from (f"  {c.activation:8.3f}  {one_line(c.marked, 66)}" for c in line.contexts[:3])
    if record.unexplained:
        yield f"changed beside the ranks: {', '.join(record.unexplained)}"
    if record.left_out:
        yield f"left out: {len(record.left_out)} prompts (--json says why)"


def _cosines(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    if not lines:
        yield "no rank reads or writes a direction that the transcoders have\n"
        return
    rows = [
        (
            _short(line["module"]),
            line["rank"],
            line["side"],
            f"{line['feature_layer']}/{line['feature']}",
            *(line[n] for n in ("cosine", "random", "quantile", "gini", "top_share")),
        )
        for line in lines
    ]
    header = ("module", "rank", "side", "feature", "cosine", "random", "> random", "Gini", "top100")
    yield table(header, rows) + "\n"


def _short(module: str) -> str:
    """``1.v_proj`` of ``model.layers.1.self_attn.v_proj``."""
    words = module.split(".")
    numbers = [word for word in words if word.isdigit()]
    return ".".join([*numbers[:1], words[-1]])
