"""Dead letters: tasks that do not run again unless they are replayed."""

from streamq.dead_letter.entry import DeadLetterEntry
from streamq.dead_letter.queue import DeadLetterQueue

__all__ = ["DeadLetterEntry", "DeadLetterQueue"]
