"""One stretch at one N, measured after it has settled."""

from __future__ import annotations

from dataclasses import dataclass, field

from fanout_workers.auto.observe import Sample, mean, throughput


@dataclass(frozen=True, slots=True)
class Point:
    """What a stretch gave: `n` was set, `load` requests were at the server, `x` tokens/s came."""

    n: int
    load: float
    x: float


@dataclass(slots=True)
class Leg:
    """Settles for `settle_s`, then measures for `measure_s` or longer.

    Polls in which fewer than .8 N are in flight show no N: there is nothing to send. They put
    the leg back to its start.
    """

    n: int
    settle_s: float
    measure_s: float
    samples: list[Sample] = field(default_factory=list)
    _settled_s: float = 0.0
    _waited_s: float = 0.0

    def feed(self, sample: Sample) -> bool:
        """Take a poll; True when the leg has measured for long enough."""
        if sample.own < 0.8 * self.n and sample.now < 0.8 * self.n:
            self.samples.clear()
            self._settled_s = 0.0
            return False
        if self.settling:
            self._settled_s += sample.dt_s
            return False
        self.samples.append(sample)
        if self.measured_s < self.measure_s - 1e-6 or self.point is None:
            return False
        return sample.rate is not None or self._steady()

    def _steady(self) -> bool:
        """Whether as much comes as Little's law says; it does not while a queue builds up.

        Completions alone lag behind N by one D, and D may be growing. Given up after three times
        the time to measure.
        """
        little = throughput(self.samples) or 0.0
        came = sum(s.tokens for s in self.samples) / self.measured_s
        self._waited_s += self.samples[-1].dt_s
        if came >= 0.87 * little or self._waited_s >= 3 * self.measure_s:
            return True
        del self.samples[0]
        return False

    @property
    def settling(self) -> bool:
        """Whether nothing is measured yet."""
        return self._settled_s < self.settle_s

    @property
    def measured_s(self) -> float:
        return sum(s.dt_s for s in self.samples)

    @property
    def point(self) -> Point | None:
        """What it gave so far."""
        x, load = throughput(self.samples), mean(s.load for s in self.samples)
        return None if not x or not load else Point(self.n, load, x)
