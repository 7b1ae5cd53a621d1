"""Runs items that may have ended their worker in processes of their own, to find the one that does.

A worker that is killed, runs out of memory or crashes takes all its items with it, and one of them
may be the cause. When they are handed out again they run in a child process, many at a time. If
that ends, too, the item whose code it was in is the suspect, and runs alone from then on. Where
the end came from elsewhere (another thread, the kernel), what was in it is divided among several
processes, and so on, until the cause is alone. What ends two processes so is poison. The others
lose no more than what they had begun.
"""

from .child import serve
from .quarantine import NoQuarantine, Poison, Quarantine

__all__ = ["NoQuarantine", "Poison", "Quarantine", "serve"]
