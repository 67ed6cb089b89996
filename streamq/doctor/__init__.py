"""`examine`: what a server and the queue on it are like, as findings with evidence and remedy."""

from streamq.doctor.examine import examine
from streamq.doctor.finding import Finding, Report, Severity
from streamq.doctor.finding_codes import SEVERITIES

__all__ = ["SEVERITIES", "Finding", "Report", "Severity", "examine"]
