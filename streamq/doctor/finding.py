"""Findings with stable codes, and the report that contains them. Pure values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from typing import Any


class Severity(IntEnum):
    """How bad a finding is. An error loses, refuses or delays tasks now; a warning may do so later."""

    OK = 0
    INFO = 1
    WARNING = 2
    ERROR = 3

    @property
    def word(self) -> str:
        """The name in JSON and in the docs."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    `code` is stable, for programs. `message` is for people. `evidence` contains the values that the check
    read. `remedy` says what to type or to do; it is empty if there is nothing to do.
    """

    code: str
    severity: Severity
    message: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values that have JSON."""
        return {
            "code": self.code, "severity": self.severity.word, "message": self.message,
            "evidence": dict(self.evidence), "remedy": self.remedy,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The findings of one examination, in the order of the checks.

    `server` is the address without the password. `taken_at` is the time of this machine.
    """

    server: str
    namespace: str
    group: str
    role: str
    taken_at: datetime
    findings: tuple[Finding, ...]

    @property
    def worst(self) -> Severity:
        """The severity of the worst finding."""
        return max((finding.severity for finding in self.findings), default=Severity.OK)

    @property
    def counts(self) -> dict[str, int]:
        """How many findings there are of each severity, by its word."""
        counts = Counter(finding.severity for finding in self.findings)
        return {severity.word: counts[severity] for severity in Severity}

    def codes(self, least: Severity = Severity.OK) -> list[str]:
        """Return the codes of the findings of at least this severity, in order, each once."""
        return list(dict.fromkeys(finding.code for finding in self.findings if finding.severity >= least))

    def exit_code(self, *, strict: bool = False) -> int:
        """Return 2 if there is an error, 1 if there is a warning and `strict` is set, else 0."""
        if self.worst is Severity.ERROR:
            return 2
        return int(strict and self.worst is Severity.WARNING)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values that have JSON."""
        return {
            "server": self.server, "namespace": self.namespace, "group": self.group, "role": self.role,
            "taken_at": self.taken_at.isoformat(timespec="milliseconds"), "worst": self.worst.word,
            "counts": self.counts, "findings": [finding.as_dict() for finding in self.findings],
        }  # fmt: skip
