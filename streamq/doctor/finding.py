"""What an examination says: findings, each with a stable code, and the report they make up. Pure values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from typing import Any


class Severity(IntEnum):
    """How bad a finding is. An error loses, refuses or holds up work; a warning will, some day."""

    OK = 0
    INFO = 1
    WARNING = 2
    ERROR = 3

    @property
    def word(self) -> str:
        """The name as it stands in JSON and in the docs."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    `code` is stable, for programs; `message` is for people. `evidence` are the values that were
    seen, `remedy` is what to type or to do, empty where nothing is to be done.
    """

    code: str
    severity: Severity
    message: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "code": self.code, "severity": self.severity.word, "message": self.message,
            "evidence": dict(self.evidence), "remedy": self.remedy,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one examination found, in the order in which it looked.

    `server` is its address without the password; `taken_at` is this machine's time.
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
        found = Counter(finding.severity for finding in self.findings)
        return {severity.word: found[severity] for severity in Severity}

    def codes(self, least: Severity = Severity.OK) -> list[str]:
        """Return the codes of the findings that are at least so bad, in order, each once."""
        return list(dict.fromkeys(finding.code for finding in self.findings if finding.severity >= least))

    def exit_code(self, *, strict: bool = False) -> int:
        """Return 2 if there is an error, 1 if there is a warning and `strict` says that it matters, else 0."""
        if self.worst is Severity.ERROR:
            return 2
        return int(strict and self.worst is Severity.WARNING)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "server": self.server, "namespace": self.namespace, "group": self.group, "role": self.role,
            "taken_at": self.taken_at.isoformat(timespec="milliseconds"), "worst": self.worst.word,
            "counts": self.counts, "findings": [finding.as_dict() for finding in self.findings],
        }  # fmt: skip
