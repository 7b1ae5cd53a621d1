"""The recent past: observations as rates, and what they say of the work and the server."""

from __future__ import annotations

import math
from collections import deque
from itertools import takewhile

from fanout_workers.auto.lengths import Lengths
from fanout_workers.auto.observe import Gauges, Observation, Sample, throughput
from fanout_workers.auto.prefill import Prefill

#: What `Window.wobble` is before anything is known: a server whose speed wanders by 4 % within a
#: minute. And over how many polls it is a mean.
WOBBLE = 0.017
_WOBBLE_POLLS = 30
#: The part of the wobble's square that is chance, before pairs of changes are known; over how many
#: pairs it is a mean, and what one of them counts at most.
_WHITE, _WHITE_PAIRS, _MOST_TURNED = 0.25, 40, 3.0
#: A scatter that does not matter; and how much wider steps become for it, as an exponent, and how
#: many times as long a look, at most.
_LITTLE, _MOST_SPREAD, _MOST_PATIENCE = 0.02, 3.0, 4.0


class Window:
    """The recent past.

    Attributes:
        samples: oldest first.
        lengths: of the work.
        others: requests of other clients at the server, of late.
        counted: whether prompts are counted, so that what they cost is taken out of throughput.
    """

    _KEPT = 720

    def __init__(self) -> None:
        self.samples: deque[Sample] = deque(maxlen=self._KEPT)
        self.lengths = Lengths()
        self.others = 0.0
        self.counted = False
        self._last: Observation | None = None
        self._prefill = Prefill()
        self._by_page = False
        self._wobble2 = WOBBLE**2
        self._white = _WHITE
        self._change: float | None = None

    def add(self, seen: Observation) -> Sample | None:
        """Take an observation; None for the first one, or when a counter went backwards."""
        last, self._last = self._last, seen
        self.lengths.began(seen.at)
        if last is None or seen.at <= last.at:
            return None
        self.lengths.ended(seen, seen.at - last.at)
        sample = self._sample(seen, last)
        if sample is not None:
            self._note_wobble(sample)
            self.samples.append(sample)
        return sample

    @property
    def duration_s(self) -> float:
        """D, the mean duration of a request, of late; before any ended, the time until now."""
        return self.lengths.duration_s

    @property
    def mean_tokens(self) -> float | None:
        """Mean tokens of a reply, of late."""
        return self.lengths.tokens

    @property
    def wobble(self) -> float:
        """How much throughput changes from one poll to the next at the same N, a share of it."""
        return math.sqrt(self._wobble2)

    @property
    def scatter(self) -> float:
        """How much one poll differs from the next by chance alone, a share of throughput.

        A speed that wanders goes on from where it is. What comes by chance is gone with the next
        poll: of such changes, one up is followed by one down, and longer looks help.
        """
        return math.sqrt(self._wobble2 * max(0.0, self._white))

    @property
    def chance(self) -> float:
        """`scatter`, as a multiple of what does not matter; at least 1."""
        return max(1.0, self.scatter / _LITTLE)

    @property
    def spread(self) -> float:
        """Exponent of a step's factor: where polls differ by chance, only a large one shows what
        it gains."""
        return min(_MOST_SPREAD, self.chance)

    @property
    def patience(self) -> float:
        """How many times as long to look at an N: what comes by chance is averaged out."""
        return min(_MOST_PATIENCE, self.chance**2)

    @property
    def poll_s(self) -> float:
        """Seconds between polls, of late."""
        return self.samples[-1].dt_s if self.samples else 5.0

    @property
    def growth(self) -> float:
        """How much larger the use of the KV cache will be at this N, as new requests come in."""
        return self.lengths.growth if self._by_page else 1.0

    @property
    def prompt_tokens(self) -> float | None:
        """Mean tokens of a prompt, of late; None where they are not known."""
        return self.lengths.prompt if self._by_page else None

    def last(self, seconds: float) -> list[Sample]:
        """The samples of the last so many seconds."""
        if not self.samples:
            return []
        since = self.samples[-1].at - seconds + 1e-6
        return list(takewhile(lambda s: s.at > since, reversed(self.samples)))[::-1]

    def _note_wobble(self, sample: Sample) -> None:
        before, self._change = self._change, self._change_to(sample)
        if self._change is None:
            return
        # One poll that is far off, as after a change of the work, does not make a noisy server.
        most = 3 * self.wobble
        self._change = min(most, max(-most, self._change))
        if before is not None:
            turned = -before * self._change / self._wobble2
            turned = min(_MOST_TURNED, max(-_MOST_TURNED, turned))
            self._white += (turned - self._white) / _WHITE_PAIRS
        self._wobble2 += (self._change**2 - self._wobble2) / _WOBBLE_POLLS

    def _change_to(self, sample: Sample) -> float | None:
        """ln of its throughput over that of the poll before; None where they are not at one N."""
        if sample.rate is None or not self.samples:
            return None
        last = self.samples[-1]
        x, before = throughput([sample]), throughput([last])
        if not x or not before or abs(math.log(sample.load / last.load)) > 0.01:
            return None
        return math.log(x / before)

    def _sample(self, seen: Observation, last: Observation) -> Sample | None:
        dt_s = seen.at - last.at
        own = max(seen.mean_in_flight, 1e-9)
        rate: float | None = None
        load, running, waiting, kv, preempted = own, None, None, None, 0.0
        if seen.streams is not None:
            rate = seen.streams.tokens / dt_s
            preempted = float(seen.streams.stalled)
            if seen.gauges is None:
                waiting = float(seen.streams.unstarted + seen.streams.stalled)
                running = max(0.0, seen.in_flight - waiting)
        if seen.gauges is not None:
            gauges, before = seen.gauges, last.gauges
            if before is not None and _started_again(gauges, before):
                return None
            total = gauges.running + gauges.waiting
            self.others += (max(0.0, total - seen.in_flight) - self.others) * 0.2
            mine = min(1.0, seen.in_flight / total) if total > 0 else 1.0
            running, waiting = gauges.running * mine, gauges.waiting * mine
            kv = gauges.kv
            preempted = gauges.preemptions - before.preemptions if before else 0.0
            if gauges.tokens is not None and before is not None and before.tokens is not None:
                # All clients' tokens belong with all clients' requests: by its own tokens alone,
                # a greedy client would seem to gain what it takes from others.
                rate = (gauges.tokens - before.tokens) / dt_s
                load = own + max(0.0, total - seen.in_flight)
        prefill_s, prompt_s = self._prompts(seen, last, rate, load / own)
        return Sample(
            seen.at, dt_s, seen.in_flight, own, load, rate, seen.completed, seen.tokens,
            seen.latency_s, seen.timeouts, running, waiting, kv, preempted, prefill_s, prompt_s,
        )  # fmt: skip

    def _prompts(
        self, seen: Observation, last: Observation, rate: float | None, clients: float
    ) -> tuple[float, float]:
        """Seconds that prompts took of this poll, and take of each generated token on average."""
        prompts = self._taken_in(seen, last)
        self.counted = rate is not None and prompts is not None
        if rate is None or prompts is None:
            return 0.0, 0.0
        dt_s = seen.at - last.at
        started = max(0, seen.completed + seen.timeouts + seen.in_flight - last.in_flight)
        self.lengths.started(started * clients, prompts)
        self._prefill.add(rate, prompts / dt_s, max(seen.mean_in_flight, 1e-9) * clients)
        mix = self.lengths.mix
        if mix is None:
            return 0.0, 0.0
        return self._prefill.seconds(dt_s, prompts), self._prefill.token_s * mix

    def _taken_in(self, seen: Observation, last: Observation) -> float | None:
        """Prompt tokens since the last poll; whole prompts, where only streams tell."""
        if seen.gauges is not None and seen.gauges.prompts is not None:
            self._by_page = True
            before = last.gauges.prompts if last.gauges is not None else None
            return None if before is None else max(0.0, seen.gauges.prompts - before)
        if self._by_page or seen.streams is None or seen.streams.begun is None:
            return None
        return float(seen.streams.begun)


def _started_again(now: Gauges, before: Gauges) -> bool:
    return now.preemptions < before.preemptions or (now.tokens or 0.0) < (before.tokens or 0.0)
