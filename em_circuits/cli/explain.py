"""``em-circuits features explain``: what does a feature mean, as far as anybody can tell?"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from em_circuits.cli.output import emit, json_option, one_line
from em_circuits.cli.session import Session, pass_session
from pivotal_tokens.errors import RequestError

if TYPE_CHECKING:
    from em_circuits.features.explain import Explained

ORGANISM_DOCUMENTS = 400
"""Documents drawn for the embedded organism where no text is given."""


@click.command(
    epilog="Example: em-circuits features explain top:5 --prompt 44a71b --text notes.txt"
)
@click.argument("features")
@click.option("--prompt", metavar="PROMPT", help="The labelled prompt that top:N is of.")
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    help="Look for contexts in this file, a document a line. [default: the organism's documents]",
)
@click.option("--model", type=click.Choice(["base", "merged"]), default="merged", show_default=True)
@click.option("--keep", type=click.IntRange(min=1), default=3, show_default=True, help="Contexts.")
@click.option(
    "--neuronpedia",
    metavar="MODEL/SOURCE",
    help="Where labels are, with {layer}: gemma-2-2b/{layer}-gemmascope-transcoder-16k.",
)
@click.option("--cache-only", is_flag=True, help="Labels from the cache alone; no network.")
@json_option
@pass_session
def explain(
    session: Session,
    features: str,
    prompt: str | None,
    text: Path | None,
    model: str,
    keep: int,
    neuronpedia: str | None,
    cache_only: bool,
    as_json: bool,
) -> None:
    """Top contexts, promoted tokens and a label of FEATURES.

    FEATURES is LAYER/ID,... (or LAYER/POSITION/ID,...), or top:N with --prompt. A feature without a
    label of its own gets that of its nearest labelled neighbour, marked as a proxy.
    """
    from em_circuits.experiments.analyse import choose_ids
    from em_circuits.features.explain import coverage
    from em_circuits.features.explain import explain as gather
    from em_circuits.features.neuronpedia import LabelSource, NeuronpediaLabels

    labels = None
    if neuronpedia is not None:
        cache = session.root / "results" / "neuronpedia"
        labels = NeuronpediaLabels(LabelSource.parse(neuronpedia), cache, online=not cache_only)
    elif cache_only:
        raise RequestError("--cache-only needs --neuronpedia MODEL/SOURCE: whose labels?")
    documents = _documents(session, text)
    with session.workspace() as work:
        chosen, by = choose_ids(work, features, prompt, model=model)  # type: ignore[arg-type]
        found = gather(work.pair.model(model), chosen, documents, labels, keep=keep)
    if as_json:
        emit(
            {
                "model": model,
                "by": by,
                "features": [item.to_json() for item in found],
                "coverage": coverage(found),
            }
        )
        return
    for item in found:
        click.echo(_block(item))
    click.echo(f"labels: {coverage(found)}")


def _documents(session: Session, path: Path | None) -> Iterable[str]:
    if path is None:
        if not session.embedded:
            raise RequestError("give --text FILE, a document a line: contexts are looked for there")
        from em_circuits.organisms.corpus import CorpusConfig, documents

        return list(documents(ORGANISM_DOCUMENTS, "explain", CorpusConfig()))
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--text {path} cannot be read: {error}") from error


def _block(item: Explained) -> str:
    lines = [f"{item.layer}/{item.feature}  fires at {item.contexts.density:.2%} of positions"]
    if item.label is not None:
        note = ""
        if item.label.kind == "proxy":
            low = ", LOW SIMILARITY" if item.label.low_similarity else ""
            note = f" (proxy: feature {item.label.feature}, cosine {item.label.cosine:.2f}{low})"
        lines.append(f"  label: {one_line(item.label.text)}{note}")
    for name, tokens in (("up", item.tokens.promoted), ("down", item.tokens.suppressed)):
        shown = " ".join(repr(token.text)[1:-1].strip() for token in islice(tokens, 8))
        lines.append(f"  {name + ':':6} {one_line(shown, 70)}")
    if not item.contexts.best:
        lines.append("  never fires in this text")
    lines += [f"  {c.activation:8.3f}  {one_line(c.marked, 66)}" for c in item.contexts.best]
    return "\n".join(lines)
