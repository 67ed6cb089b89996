"""Dead letters: tasks that will not run again unless somebody says so."""

from streamq.dead_letter.entry import DeadLetter
from streamq.dead_letter.queue import PAGE, REPLAYED_FROM, DeadLetterQueue

__all__ = ["PAGE", "REPLAYED_FROM", "DeadLetter", "DeadLetterQueue"]
