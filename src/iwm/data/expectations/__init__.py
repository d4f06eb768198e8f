"""Validation of the index with Great Expectations: tables, suite, verdict, page."""

from iwm.data.expectations.report import Finding, ValidationReport
from iwm.data.expectations.validate import validate_index

__all__ = ["Finding", "ValidationReport", "validate_index"]
