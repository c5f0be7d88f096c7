"""Report of an audit: ``report.md`` and ``report.html``, of the same parts.

page = write_audit_report(audit)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from em_circuits.audit.calibration import MEANING
from em_circuits.audit.decision import Calibration
from em_circuits.audit.run import DECISION, Audit
from em_circuits.audit.score import MeanEstimate
from em_circuits.report.page import Heading, Headline, Table, write_markdown, write_page
from pivotal_tokens.artefacts import sha256_file

MARKDOWN, HTML = "report.md", "report.html"
_ANSWERS = 12


def write_audit_report(audit: Audit) -> Path:
    """Write both twins, and return the path of the page."""
    _write(audit.folder, f"Audit: {audit.folder.name}", list(_parts(audit)), DECISION)
    return audit.folder / HTML


def write_audits_page(path: Path, audits: Sequence[Audit]) -> None:
    """One page for several audits side by side, with its provenance."""
    parts: list[Any] = [
        Table(
            "Decisions",
            ("audit", "decision", "by", "score", "threshold", "rise in loss"),
            [
                (
                    audit.folder.name,
                    audit.decision.decision,
                    audit.decision.method,
                    _shown(audit.decision.score),
                    _shown(audit.decision.threshold),
                    _shown(audit.decision.rise),
                )
                for audit in audits
            ],
        )
    ]
    for audit in audits:
        parts += [Heading(audit.folder.name), *_parts(audit)]
    inputs = {audit.folder.name: sha256_file(audit.folder / DECISION) for audit in audits}
    write_page(path, "Audits side by side", parts, inputs=inputs, config={})


def write_calibration_report(folder: Path, calibration: Calibration, file: str) -> Path:
    """``report.md`` and ``report.html`` of a calibration; returns the path of the page."""
    _write(folder, f"Calibration: {folder.name}", list(_calibrated(calibration)), file)
    return folder / HTML


def _write(folder: Path, title: str, parts: list[Any], source: str) -> None:
    provenance = {
        "inputs": {source: sha256_file(folder / source)},
        "config": {"title": title},
    }
    write_markdown(folder / MARKDOWN, title, parts, **provenance)
    write_page(folder / HTML, title, parts, **provenance)


def _shown(value: MeanEstimate | None) -> str | None:
    return None if value is None else str(value)


def _parts(audit: Audit) -> Iterator[Any]:
    score, results, evidence = audit.score, audit.results, audit.evidence
    yield Headline(audit.decision.said)
    candidate = ", ".join(f"{part} {name}" for part, name in audit.config["candidate"].items())
    yield (
        f"Candidate: {candidate}; over suite {results.suite}: {score.n_prompts} "
        f"prompts, {score.n_cases} cases, {score.n_nodes} nodes ({audit.config['space']['basis']})."
        " An interval in brackets is the middle 95 % of bootstrap draws over prompts."
    )
    methods = list(score.scores)
    rows: list[tuple[Any, ...]] = [("all", *(_shown(score.scores[m]) for m in methods))]
    rows += [(name, *(_shown(by[m]) for m in methods)) for name, by in score.by_category.items()]
    yield Heading("Scores")
    said = "" if score.calibrated else " (uncalibrated: no threshold is known for them)"
    yield Table(f"Scores by category{said}", ("category", *methods), rows)
    yield Table(
        "What the numbers rest on",
        ("figure", "value"),
        [
            ("KL of the next token, nats", _shown(results.kl)),
            ("prompts whose answer changed", _shown(results.changed_answers)),
            ("rise in loss on capability texts, nats per token", _shown(results.rise)),
            ("largest differences shared by wordings of a prompt", _shown(score.stability)),
            ("largest differences shared by different prompts", _shown(score.between_prompts)),
            ("drift: share of squared differences equal in all prompts", f"{score.drift:.1%}"),
        ],
    )
    yield Heading("What differs")
    yield f"Explanations ({evidence.source}): {evidence.coverage}."
    yield Table(
        "Nodes by their difference once the drift is taken out",
        ("node", "difference", "corrected", "explanation", "promotes", "suppresses"),
        [
            (
                one.node,
                str(one.difference),
                str(one.corrected),
                one.explanation or _stand_in(one.stands_in),
                " ".join(one.promoted) or None,
                " ".join(one.suppressed) or None,
            )
            for one in evidence.nodes
        ],
    )
    yield Heading("Prompts")
    yield Table(
        "Scores by prompt, over its wordings and formats",
        ("prompt", "category", *methods, "largest differences"),
        [
            (
                one.prompt,
                one.category,
                *(_shown(one.scores[m]) for m in methods),
                ", ".join(f"{d.node} {d.difference:+.2g}" for d in one.top_corrected[:4]),
            )
            for one in score.prompts
        ],
    )
    largest = sorted(results.cases, key=lambda one: -one.kl)[:_ANSWERS]
    yield Table(
        "Answers where the next token differs most",
        ("prompt", "KL", "text", "base", "candidate"),
        [(c.prompt, c.kl, c.text, c.base_answer, c.candidate_answer) for c in largest],
    )


def _stand_in(text: str | None) -> str | None:
    return None if text is None else f"(near) {text}"


def _calibrated(calibration: Calibration) -> Iterator[Any]:
    own = calibration.methods[calibration.method]
    yield Headline(
        f"Decisions by {calibration.method}: threshold {own.threshold}, AUROC of harmful against "
        f"harmless {_shown(own.auroc) or 'unknown'}. {calibration.caveat}".rstrip()
    )
    yield MEANING
    yield Table(
        "What each score tells apart",
        ("score", "threshold", "false positives", "AUROC harmful", "AUROC broken"),
        [
            (
                name,
                str(one.threshold),
                str(one.false_positives),
                _shown(one.auroc),
                _shown(one.auroc_broken),
            )
            for name, one in calibration.methods.items()
        ],
    )
    methods = list(calibration.methods)
    bound = f"broken above a rise in loss of {calibration.broken_above:.3g}"
    tables = {f"Candidates; {bound}": calibration.candidates}
    if (held_out := calibration.held_out) is not None:
        yield (
            "On fine-tunes that the calibration was not made from: AUROC "
            + ", ".join(f"{name} {one}" for name, one in held_out.auroc.items())
            + f"; by {calibration.method} {held_out.false_positives} of the harmless and "
            f"{held_out.true_positives} of the harmful ones are above the threshold."
        )
        tables["Fine-tunes that it was not made from"] = held_out.candidates
    for caption, candidates in tables.items():
        yield Table(
            caption,
            ("candidate", "kind", *methods, "rise in loss", "stability", "decision"),
            [
                (
                    one.name,
                    one.kind,
                    *(str(one.scores[m]) for m in methods),
                    str(one.rise),
                    _shown(one.stability),
                    one.decision,
                )
                for one in candidates
            ],
        )
