"""In place of a model: every request simply takes a drawn time."""

from __future__ import annotations

import heapq
import random
from collections import deque

from fanout.sim.engine import Gauges, QueueFull, Sequence, State, Work
from fanout.sim.lengths import Distribution


class Delays:
    """The interface of `Engine`, with times from a distribution instead of a curve.

    Args:
        seconds: how long a request runs.
        seed: of the draws.
        max_num_seqs: requests that run at once; None: all.
        queue_limit: requests that may be inside; None: any number.
    """

    def __init__(
        self,
        seconds: Distribution,
        seed: int = 0,
        max_num_seqs: int | None = None,
        queue_limit: int | None = None,
    ) -> None:
        self._seconds = seconds
        self._dice = random.Random(seed)  # noqa: S311 - no secret
        self._max = max_num_seqs
        self._limit = queue_limit
        self._ends: list[tuple[float, int, Sequence]] = []
        self._waiting: deque[Sequence] = deque()
        self._added = 0
        self._running = 0
        self._queued = 0
        self._finished: list[Sequence] = []
        self._prompt_tokens = 0
        self._generated = 0
        self._counts = {"stop": 0, "length": 0, "abort": 0}

    def add(self, now: float, work: Work) -> Sequence:
        """Take a request; raises `QueueFull`."""
        self._step_to(now)
        if self._limit is not None and self._running + self._queued >= self._limit:
            raise QueueFull
        sequence = Sequence(work, now)
        self._waiting.append(sequence)
        self._queued += 1
        self._admit(now)
        return sequence

    def abort(self, now: float, sequence: Sequence) -> bool:
        """End a request; False when it has ended before."""
        self._step_to(now)
        if sequence.state in (State.FINISHED, State.ABORTED):
            return False
        if sequence.state is State.WAITING:
            self._queued -= 1
        else:
            sequence.progress = self.generated(sequence, now)
            self._running -= 1
        sequence.state, sequence.ended_at = State.ABORTED, now
        self._generated += int(sequence.progress)
        self._counts["abort"] += 1
        self._admit(now)
        return True

    def advance(self, now: float) -> list[Sequence]:
        """Go on to `now`; the requests that finished since the last call."""
        self._step_to(now)
        finished, self._finished = self._finished, []
        return finished

    def next_at(self) -> float | None:
        """When the next request ends."""
        while self._ends and self._ends[0][2].state is State.ABORTED:
            heapq.heappop(self._ends)
        return self._ends[0][0] if self._ends else None

    def generated(self, sequence: Sequence, now: float) -> int:
        """Output tokens at `now`: evenly over the request's time."""
        if sequence.state is not State.DECODING or sequence.admitted_at is None:
            return int(sequence.progress)
        whole = sequence.v_end - sequence.admitted_at
        share = min(1.0, (now - sequence.admitted_at) / whole) if whole else 1.0
        return int(share * sequence.work.output_tokens)

    def gauges(self, now: float) -> Gauges:
        """The load at `now`; no KV cache is modelled."""
        self._step_to(now)
        return Gauges(
            running=self._running,
            waiting=self._queued,
            kv_use=0.0,
            preemptions=0,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generated,
            finished=dict(self._counts),
        )

    def _step_to(self, now: float) -> None:
        while self._ends and self._ends[0][0] <= now:
            at, _, sequence = heapq.heappop(self._ends)
            if sequence.state is not State.DECODING:
                continue
            sequence.state, sequence.ended_at = State.FINISHED, at
            sequence.progress = sequence.work.output_tokens
            self._running -= 1
            self._generated += sequence.work.output_tokens
            self._counts[sequence.work.finish_reason] += 1
            self._finished.append(sequence)
            self._admit(at)

    def _admit(self, now: float) -> None:
        while self._waiting and (self._max is None or self._running < self._max):
            sequence = self._waiting.popleft()
            if sequence.state is not State.WAITING:
                continue
            self._queued -= 1
            self._running += 1
            self._added += 1
            sequence.state = State.DECODING
            sequence.admitted_at = sequence.first_token_at = now
            sequence.v_end = now + self._seconds.draw(self._dice)
            self._prompt_tokens += sequence.work.prompt_tokens
            heapq.heappush(self._ends, (sequence.v_end, self._added, sequence))
