"""Labels in and out of the store, and reports on them: divergence, agreement, plots."""

from pivotal_tokens.labels.agreement import AgreementReport, label_agreement
from pivotal_tokens.labels.divergence import Divergence, divergence
from pivotal_tokens.labels.formats import read_records, write_records
from pivotal_tokens.labels.intake import ImportReport, import_labels
from pivotal_tokens.labels.records import FIELDS, label_records

__all__ = [
    "FIELDS",
    "AgreementReport",
    "Divergence",
    "ImportReport",
    "divergence",
    "import_labels",
    "label_agreement",
    "label_records",
    "read_records",
    "write_records",
]
