"""`examine`: what a server and the queue on it are like, as findings with evidence and remedy."""

from streamq.doctor.codes import SEVERITIES
from streamq.doctor.examination import examine
from streamq.doctor.finding import Finding, Report, Severity

__all__ = ["SEVERITIES", "Finding", "Report", "Severity", "examine"]
