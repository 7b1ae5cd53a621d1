"""A model server's scheduler by a `Profile`: queue, prefill, decoding, KV cache, preemption.

No I/O and no clock: every call says what time it is, so that a benchmark runs it in virtual time
and a server in real time. An event costs O(log n).

Requests are served as vLLM does it, first come, first served, in a fluid model of its steps:

- A request is admitted when fewer than `max_num_seqs` run and the KV cache has room for its prompt.
- Prompts are taken in one after another. Meanwhile nothing is decoded; each ends with the first
  token of its answer.
- All others gain tokens at one rate, which depends on how many they are. It is kept as a virtual
  clock V, tokens gained by a request that was always there: whoever starts at V = v ends at
  v + tokens, however often the rate changes in between.
- The KV cache grows with every token. When it is full, the latest arrival is preempted: it goes to
  the front of the queue, and prompt and answer so far are taken in again when there is room.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from fanout.sim.curves import Profile

#: The speed under noise is drawn anew at this interval, and forgets the old one at this rate.
_NOISE_S = 10.0
_NOISE_MEMORY = 0.8
_SLOW_STEPS = 20
_SLOWEST = 0.1


class QueueFull(Exception):
    """As many requests are in the engine as may: vLLM with --max-num-queued-reqs answers 503."""


class State(Enum):
    WAITING = "waiting"
    PREFILL = "prefill"
    DECODING = "decoding"
    FINISHED = "finished"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class Work:
    """What a request asks of the engine.

    Args:
        id: for whoever asks.
        prompt_tokens: from 0 up.
        output_tokens: from 1 up; the engine stops exactly there.
        finish_reason: under which it is counted: stop or length.
    """

    id: str
    prompt_tokens: int
    output_tokens: int
    finish_reason: str = "stop"


@dataclass(eq=False, slots=True)
class Sequence:
    """A request in the engine. Times are the caller's clock; None until it comes to that.

    Attributes:
        work: as it was given.
        arrived_at: when it was added.
        admitted_at: when it first left the queue.
        first_token_at: when its first prefill ended.
        ended_at: when it was finished or aborted.
        preemptions: how often the KV cache had no room for it.
        state: where it is.
    """

    work: Work
    arrived_at: float
    admitted_at: float | None = None
    first_token_at: float | None = None
    ended_at: float | None = None
    preemptions: int = 0
    state: State = State.WAITING
    # Tokens so far, up to date while it is not decoding; then V at which it ends counts.
    progress: float = 0.0
    v_end: float = math.inf

    @property
    def context(self) -> float:
        """Tokens to take in when it is admitted."""
        return self.work.prompt_tokens + self.progress


@dataclass(frozen=True, slots=True)
class Gauges:
    """The engine's load, and what it did since its start.

    Attributes:
        running: requests that have been admitted.
        waiting: requests in the queue.
        kv_use: share of the KV cache that is in use, 0 to 1.
        preemptions: how often a request was.
        prompt_tokens: of first prefills.
        generation_tokens: output tokens, those of aborted requests included.
        finished: requests by stop, length, abort.
    """

    running: int
    waiting: int
    kv_use: float
    preemptions: int
    prompt_tokens: int
    generation_tokens: int
    finished: dict[str, int]


class Engine:
    """One server's scheduler.

    Args:
        profile: how fast it is.
        seed: of the noise.
        noise: standard deviation of its speed as a share of it; drifts over tens of seconds.
        max_num_seqs: instead of the profile's.
        queue_limit: instead of the profile's.
        slow_start_s: seconds after the first request in which it rises from a tenth to its speed.
    """

    def __init__(
        self,
        profile: Profile,
        seed: int = 0,
        noise: float = 0.0,
        max_num_seqs: int | None = None,
        queue_limit: int | None = None,
        slow_start_s: float = 0.0,
    ) -> None:
        self.profile = profile
        self.max_num_seqs = profile.max_num_seqs if max_num_seqs is None else max_num_seqs
        self.queue_limit = profile.queue_limit if queue_limit is None else queue_limit
        self._speed = _Speed(seed, noise, slow_start_s)
        self._now = -math.inf
        self._v = 0.0
        self._kv = 0.0
        self._generated = 0.0
        self._decoding = 0
        self._waiting_count = 0
        # Left entries: a sequence that is aborted or preempted stays until it is met.
        self._waiting: deque[Sequence] = deque()
        self._prefill: deque[Sequence] = deque()
        self._prefill_left_s = 0.0
        self._ends: list[tuple[float, int, Sequence]] = []
        self._pushed = 0
        # In the order of admission, which is that of arrival: who is preempted goes to the front.
        self._running: dict[Sequence, None] = {}
        self._finished: list[Sequence] = []
        self._rates: dict[int, float] = {}
        self._preemptions = 0
        self._prompt_tokens = 0
        self._counts = {"stop": 0, "length": 0, "abort": 0}

    def add(self, now: float, work: Work) -> Sequence:
        """Take a request.

        Raises:
            QueueFull: as many wait and run as may.
            ValueError: it is longer than the model's context, or has no output.
        """
        total = work.prompt_tokens + work.output_tokens
        if work.output_tokens < 1 or work.prompt_tokens < 0:
            raise ValueError("a request has a prompt of 0 tokens or more, an output of 1 or more")
        if total > self.profile.max_model_len:
            raise ValueError(f"{total} tokens do not fit max_model_len")
        self._step_to(now)
        if self.queue_limit is not None and self._inside() >= self.queue_limit:
            raise QueueFull
        sequence = Sequence(work, self._now)
        self._waiting.append(sequence)
        self._waiting_count += 1
        self._admit()
        return sequence

    def abort(self, now: float, sequence: Sequence) -> bool:
        """End a request; False when it has ended before."""
        self._step_to(now)
        if sequence.state in (State.FINISHED, State.ABORTED):
            return False
        if sequence.state is State.WAITING:
            self._waiting_count -= 1
        else:
            self._release(sequence)
        sequence.state, sequence.ended_at = State.ABORTED, self._now
        self._counts["abort"] += 1
        self._start_prefill()
        self._admit()
        return True

    def advance(self, now: float) -> list[Sequence]:
        """Go on to `now`; the requests that finished since the last call, in their order."""
        self._step_to(now)
        finished, self._finished = self._finished, []
        return finished

    def next_at(self) -> float | None:
        """When to call `advance` next; None when nothing happens by itself."""
        if self._finished:
            return self._now
        if not self._running:
            return None
        return self._now + self._until_event()[0]

    def generated(self, sequence: Sequence, now: float) -> int:
        """Output tokens that the request has at `now`, a time before the next event."""
        if sequence.state is not State.DECODING:
            return int(sequence.progress + 1e-6)
        v = self._v + max(0.0, now - self._now) * self._rate()
        total = sequence.work.output_tokens
        return min(total, int(total - (sequence.v_end - v) + 1e-6))

    def gauges(self, now: float) -> Gauges:
        """The load at `now`."""
        self._step_to(now)
        return Gauges(
            running=len(self._running),
            waiting=self._waiting_count,
            kv_use=self._kv / self.profile.kv_capacity_tokens,
            preemptions=self._preemptions,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=int(self._generated + 1e-6),
            finished=dict(self._counts),
        )

    def _step_to(self, now: float) -> None:
        while self._running:
            wait, v_event = self._until_event()
            if self._now + wait > now:
                break
            self._gain(v_event - self._v)
            self._prefill_left_s -= wait * self._speed.factor if self._prefill else 0.0
            self._v, self._now = v_event, self._now + wait
            self._event()
        if now > self._now:
            if self._running:
                passed = now - self._now
                if self._prefill:
                    self._prefill_left_s -= passed * self._speed.factor
                else:
                    gained = passed * self._rate()
                    self._gain(gained)
                    self._v += gained
            self._now = now

    def _until_event(self) -> tuple[float, float]:
        """Seconds to the next event, and V there."""
        tick_s = self._speed.tick_at - self._now
        if self._prefill:
            return max(0.0, min(tick_s, self._prefill_left_s / self._speed.factor)), self._v
        rate = self._rate()
        room = max(0.0, self.profile.kv_capacity_tokens - self._kv) / self._decoding
        # Alone it always has room; at a tie the end comes first.
        v_full = self._v + room if self._decoding > 1 else math.inf
        v_next = min(self._first_end(), v_full)
        wait = max(0.0, (v_next - self._v) / rate)
        if tick_s < wait:
            return max(0.0, tick_s), self._v + max(0.0, tick_s) * rate
        return wait, v_next

    def _event(self) -> None:
        """Whatever is due now."""
        if self._speed.tick_at <= self._now:
            self._speed.draw(self._now)
        if self._prefill:
            if self._prefill_left_s <= 1e-9:
                self._end_prefill()
        else:
            while self._decoding and self._first_end() <= self._v:
                self._finish(heapq.heappop(self._ends)[2])
            if self._kv >= self.profile.kv_capacity_tokens - 1e-6 and self._decoding > 1:
                self._preempt(next(reversed(self._running)))
        self._admit()

    def _first_end(self) -> float:
        while True:
            v_end, _, sequence = self._ends[0]
            if sequence.state is State.DECODING and sequence.v_end == v_end:
                return v_end
            heapq.heappop(self._ends)

    def _rate(self) -> float:
        """dV/dt."""
        if self._prefill or not self._decoding:
            return 0.0
        rate = self._rates.get(self._decoding)
        if rate is None:
            rate = self._rates[self._decoding] = self.profile.decode_rate(self._decoding)
        return rate * self._speed.factor

    def _gain(self, dv: float) -> None:
        tokens = dv * self._decoding
        self._kv += tokens
        self._generated += tokens

    def _inside(self) -> int:
        return self._waiting_count + len(self._running)

    def _has_room(self, sequence: Sequence) -> bool:
        return (
            len(self._running) < self.max_num_seqs
            and self._kv + sequence.context + 1 <= self.profile.kv_capacity_tokens
        )

    def _admit(self) -> None:
        while self._waiting:
            sequence = self._waiting[0]
            if sequence.state is not State.WAITING:
                self._waiting.popleft()
                continue
            if not self._has_room(sequence):
                return
            self._waiting.popleft()
            self._waiting_count -= 1
            if not self._running:
                self._speed.wake(self._now)
            self._running[sequence] = None
            self._kv += sequence.context + 1  # the first token has its place from the start
            sequence.state = State.PREFILL
            if sequence.admitted_at is None:
                sequence.admitted_at = self._now
            self._prefill.append(sequence)
            if len(self._prefill) == 1:
                self._prefill_left_s = self._prefill_s(sequence)

    def _prefill_s(self, sequence: Sequence) -> float:
        return sequence.context / self.profile.prefill_tokens_per_s

    def _start_prefill(self) -> None:
        """Put the next sequence at the head of the prefill queue, if the head's has ended."""
        before = self._prefill[0] if self._prefill else None
        while self._prefill and self._prefill[0].state is not State.PREFILL:
            self._prefill.popleft()
        if self._prefill and self._prefill[0] is not before:
            self._prefill_left_s = self._prefill_s(self._prefill[0])

    def _end_prefill(self) -> None:
        sequence = self._prefill[0]
        sequence.state = State.DECODING
        self._start_prefill()
        self._decoding += 1
        self._pushed += 1
        self._generated += 1
        if sequence.first_token_at is None:
            sequence.first_token_at = self._now
            self._prompt_tokens += sequence.work.prompt_tokens
        sequence.v_end = self._v + sequence.work.output_tokens - sequence.progress - 1
        heapq.heappush(self._ends, (sequence.v_end, self._pushed, sequence))
        if sequence.v_end <= self._v:
            self._finish(sequence)

    def _finish(self, sequence: Sequence) -> None:
        self._release(sequence)
        sequence.progress = sequence.work.output_tokens
        sequence.state, sequence.ended_at = State.FINISHED, self._now
        self._counts[sequence.work.finish_reason] += 1
        self._finished.append(sequence)

    def _preempt(self, sequence: Sequence) -> None:
        self._release(sequence)
        sequence.state = State.WAITING
        sequence.preemptions += 1
        self._preemptions += 1
        self._waiting.appendleft(sequence)
        self._waiting_count += 1

    def _release(self, sequence: Sequence) -> None:
        """Take an admitted sequence out of what runs, its progress noted."""
        del self._running[sequence]
        if sequence.state is State.DECODING:
            sequence.progress = sequence.work.output_tokens - (sequence.v_end - self._v)
            self._decoding -= 1
            self._kv -= sequence.context
        else:
            self._kv -= sequence.context + 1
        if not self._running:
            self._kv = 0.0  # no rounding error outlives the busy time
            self._ends.clear()


@dataclass(slots=True)
class _Speed:
    """The server's speed as a multiple of the curve's, constant between two draws."""

    seed: int
    noise: float
    slow_start_s: float
    factor: float = 1.0
    tick_at: float = math.inf
    _started_at: float | None = None
    _z: float = 0.0
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311 - no secret

    def wake(self, now: float) -> None:
        """Called when the server gets work after having had none."""
        if self._started_at is None:
            self._started_at = now
            self._z = self._random.gauss()
        if self.tick_at <= now or self.tick_at == math.inf:
            self.draw(now)

    def draw(self, now: float) -> None:
        self.factor, self.tick_at = 1.0, math.inf
        if self.noise:
            fresh = math.sqrt(1 - _NOISE_MEMORY**2) * self._random.gauss()
            self._z = _NOISE_MEMORY * self._z + fresh
            self.factor = math.exp(self.noise * self._z - self.noise**2 / 2)
            self.tick_at = now + _NOISE_S
        age = now - (now if self._started_at is None else self._started_at)
        if age < self.slow_start_s:
            self.factor *= _SLOWEST + (1 - _SLOWEST) * age / self.slow_start_s
            self.tick_at = min(self.tick_at, now + self.slow_start_s / _SLOW_STEPS)
