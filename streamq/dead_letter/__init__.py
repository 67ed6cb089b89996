"""Dead letters: tasks that do not run again unless they are replayed."""

from streamq.dead_letter.entry import DeadLetterEntry
from streamq.dead_letter.filter import DeadLetterFilter
from streamq.dead_letter.lines import Imported
from streamq.dead_letter.operation import DeadLetterOperation, LetterOutcome
from streamq.dead_letter.progress import OperationProgress
from streamq.dead_letter.queue import DeadLetterQueue
from streamq.dead_letter.redaction import Redaction
from streamq.dead_letter.searching import DeadLetterGroup, DeadLetterStats, SearchResult

__all__ = [
    "DeadLetterEntry", "DeadLetterFilter", "DeadLetterGroup", "DeadLetterOperation", "DeadLetterQueue",
    "DeadLetterStats", "Imported", "LetterOutcome", "OperationProgress", "Redaction", "SearchResult",
]  # fmt: skip
