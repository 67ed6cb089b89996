"""`examine`: checks a server and its queue, and returns findings with evidence and remedy."""

from streamq.doctor.examine import examine
from streamq.doctor.finding import Finding, Report, Severity
from streamq.doctor.finding_codes import SEVERITIES

__all__ = ["SEVERITIES", "Finding", "Report", "Severity", "examine"]
