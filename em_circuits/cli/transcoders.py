"""``em-circuits transcoders``: sets trained, sets of other libraries, what a set is worth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from em_circuits.cli.doctor import check_lines
from em_circuits.cli.options import options
from em_circuits.cli.output import emit, prints, table
from em_circuits.cli.session import Session, pass_session
from em_circuits.models.foreign_transcoders import ConvertedTranscoders, convert_transcoders
from em_circuits.models.settings import NEURONS
from em_circuits.models.source import (
    base_shape,
    check_transcoder_fit,
    foreign_folder,
    locate,
    locate_all,
)
from em_circuits.training.documents import read_documents
from em_circuits.training.settings import MARKER, SetTraining
from pivotal_tokens.errors import RequestError, WorkFailed

if TYPE_CHECKING:
    from em_circuits.models.transcoder_check import LayerQuality, TranscoderReport
    from em_circuits.models.transcoder_files import TranscoderFiles
    from em_circuits.training.transcoder_quality import TrainedSetReport


@click.group()
def transcoders() -> None:
    """Train sets, convert those of SAELens and sparsify, check any set."""


@transcoders.command(
    epilog="Example: em-circuits transcoders convert EleutherAI/skip-transcoder-Llama-3.2-1B-131k "
    "--out transcoders/llama-skip"
)
@click.argument("source")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Receives the set: a directory that is not there yet.",
)
@click.option("--model-name", help="Base model of the set.  [default: what its files say]")
@prints(ConvertedTranscoders)
def convert(source: str, out: Path, model_name: str | None, as_json: bool) -> None:
    """Write SOURCE in circuit-tracer's layout: a directory or a hub id (org/name[/folder]).

    SOURCE is a set of SAELens (cfg.json, sae_weights.safetensors), of sparsify (cfg.json,
    sae.safetensors in a folder per layer) or of gemma-scope. The numbers are the same.
    """
    folder = foreign_folder("SOURCE", source)
    emit(convert_transcoders("SOURCE", folder, out, model_name=model_name), as_json, _converted)


@transcoders.command(
    epilog="Example: em-circuits --base models/base transcoders check transcoders/llama-skip "
    "--text passages.txt"
)
@click.argument("name", metavar="[SET]", required=False)
@click.option(
    "--text",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Passages, one a line, on which the base is run: FVU, L0 and dead features.",
)
@prints("em_circuits.models.transcoder_check:TranscoderReport")
@pass_session
def check(session: Session, name: str | None, text: Path | None, as_json: bool) -> None:
    """Look into every file of SET, a directory or a hub id.  [default: the session's]

    A layer that is missing, broken, of another width, or holds NaN is named with its file. SET is
    compared with the base where that is given (--base, --organism) or SET is not.
    """
    compared = name is None or text is not None or _base_given(session)
    if name is not None:
        session = Session({**session.options, "transcoders": name})
    passages = _passages(text) if text is not None else []
    settings = session.models() if compared else None
    flag = "--transcoders" if name is None else "SET"
    reference = name if settings is None else settings.transcoders
    if reference is None or reference == NEURONS:
        raise RequestError("--transcoders none has no files; give SET")
    files = locate(flag, reference, kind="transcoders").transcoders
    assert files is not None
    base = None
    if settings is not None:
        base = locate("--base", settings.base, kind="model")
        check_transcoder_fit(flag, files, base)

    from em_circuits.models.transcoder_check import transcoder_checks

    checks = transcoder_checks(files, None if base is None else base.name)
    quality: list[LayerQuality] = []
    positions = 0
    if settings is not None and base is not None and passages:
        from em_circuits.models.pair import load_causal_lm, load_tokenizer
        from em_circuits.models.transcoder_check import in_order, reconstruction_quality
        from em_circuits.models.transcoders import load_transcoders

        device, dtype = settings.resolved_device(), settings.resolved_dtype()
        place = settings.transcoders_on
        loaded = load_transcoders(files, device=device, dtype=dtype, place=place)
        model = load_causal_lm("--base", base, device=device, dtype=dtype)
        tokenizer = load_tokenizer("--base", base)
        quality, positions = reconstruction_quality(
            model, tokenizer, loaded, passages, session.bars()
        )
        checks += in_order(files, quality)
    emit(_report(files, checks, quality, positions), as_json, _checked)
    if failed := sum(one.fatal and not one.ok for one in checks):
        raise WorkFailed(f"{failed} checks failed; see the advice above")


@transcoders.command(
    epilog="Example: em-circuits --base models/base transcoders train --text corpus --skip "
    "--layers 5,15 --out transcoders/mine"
)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Receives the set and its report; a killed run goes on there.",
)
@click.option(
    "--text",
    type=click.Path(exists=True, path_type=Path),
    help="A file, or a folder of them: plain text, or JSON lines with text or messages.  "
    "[default: the package's own templates]",
)
@options(SetTraining)
@prints("em_circuits.training.transcoder_quality:TrainedSetReport")
@pass_session
def train(
    session: Session, out: Path, text: Path | None, options: SetTraining, as_json: bool
) -> None:
    """Train per-layer transcoders of the base, for --transcoders OUT, and measure them.

    A tenth of the documents is held out: FVU beside an affine map's, and the model's loss and KL
    with its MLPs replaced, beside ablations. --seed, --dtype and --device stand before the command.
    """
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise RequestError(f"--out {out} is there already; give a new directory")
    documents = None if text is None else read_documents("--text", text)
    if session.options["transcoders"] is None and not session.embedded:
        session = Session({**session.options, "transcoders": NEURONS}, session.sitting)
    settings = session.models()
    base = locate("--base", settings.base, kind="model")
    if (depth := base_shape(base)[1]) is not None:
        options.chosen(depth)
    if options.target != "base":
        locate_all(settings)
    if options.difference:
        session.open_store().close()

    from em_circuits.experiments.transcoder_training import train_for

    found = train_for(session.workspace(), out, documents, options, about=_about(text, documents))
    emit(found, as_json, _trained)


def _about(text: Path | None, documents: list | None) -> str:
    if documents is None:
        return "the package's own templates, whose few words flatter every figure"
    return f"{text}, {len(documents)} documents"


def _base_given(session: Session) -> bool:
    return not session.embedded or session.options["organism_name"] is not None


def _passages(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise RequestError(f"--text {path} is not UTF-8 text; give passages, one a line") from error
    if not (passages := [line for line in lines if line.strip()]):
        raise RequestError(f"--text {path} is empty; give passages, one a line")
    return passages


def _report(
    files: TranscoderFiles, checks: list, quality: list, positions: int
) -> TranscoderReport:
    from em_circuits.models.transcoder_check import TranscoderReport

    return TranscoderReport(
        path=str(files.folder),
        format=files.layers[0].format,
        layers=len(files.layers),
        d_model=files.d_model,
        width=files.layers[0].width,
        feature_input_hook=files.config["feature_input_hook"],
        feature_output_hook=files.config["feature_output_hook"],
        ok=all(one.ok or not one.fatal for one in checks),
        checks=tuple(checks),
        quality=tuple(quality),
        positions=positions,
    )


def _converted(made: ConvertedTranscoders) -> Iterator[str]:
    gate = made.gate if made.k is None else f"{made.gate} (k {made.k})"
    skip = ", skip connections" if made.skip else ""
    yield (
        f"written: {made.path}\n{made.library}, {made.layers} layers of {made.width} features, "
        f"width {made.d_model}, {gate}{skip}"
    )
    base = made.model_name or "a base that is not named (--model-name)"
    yield f"{made.feature_input_hook} > {made.feature_output_hook}, of {base}"
    yield f"next: em-circuits --base DIR transcoders check {made.path} --text FILE"


def _checked(report: TranscoderReport) -> Iterator[str]:
    yield (
        f"{report.path}\n{report.format}, {report.layers} layers of {report.width} features, "
        f"width {report.d_model}, {report.feature_input_hook} > {report.feature_output_hook}"
    )
    yield from check_lines(report.checks)
    if report.quality:
        rows = [(q.layer, q.fvu, q.l0, q.dead) for q in report.quality]
        yield table(("layer", "FVU", "L0", "dead"), rows)
        yield f"over {report.positions} positions"


def _trained(report: TrainedSetReport) -> Iterator[str]:
    yield (
        f"written: {report.path}\n{report.tokens} positions, {report.passes:.1f} times each, "
        f"{report.buffer_mb:.0f} MB of activations at a time; {report.held_out} held out:"
    )
    rows = [(q.layer, q.fvu, *q.fvu_halves, q.fvu_affine, q.l0, q.dead) for q in report.layers]
    yield table(("layer", "FVU", "half", "half", "affine", "L0", "dead"), rows)
    if report.loss is not None:
        every = tuple(q.layer for q in report.layers)
        yield f"MLPs of these layers replaced (loss {report.loss:.3f} with the model's own):"
        shown = [(r.by, r.loss, r.kl, r.score) for r in report.replacements if r.layers == every]
        yield table(("by", "loss", "KL", "score"), shown)
    if report.carried:
        yield f"share of the shift over {report.prompts} prompts, by differences added to the base:"
        yield table(
            ("by", "share", "low", "high"), [tuple(dict(one).values()) for one in report.carried]
        )
    if report.target != "difference":
        yield f"next: em-circuits --base DIR --adapter DIR --transcoders {report.path} doctor"
