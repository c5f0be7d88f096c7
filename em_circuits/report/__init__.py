"""Results as pages that can be opened anywhere: one HTML file, nothing fetched."""

from typing import TYPE_CHECKING

from pivotal_tokens.lazy import lazy

if TYPE_CHECKING:
    from em_circuits.report.page import Table, page_html, write_page
    from em_circuits.report.sweep_report import write_sweep_report
    from em_circuits.report.validation import validation_parts
else:
    __getattr__, __dir__ = lazy(__name__)

__all__ = ["Table", "page_html", "validation_parts", "write_page", "write_sweep_report"]
