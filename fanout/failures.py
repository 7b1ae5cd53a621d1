"""How one request to a model fails: one tree, and what follows from each kind.

    Failure
    ├── connect     refused, or reset before the reply    at once, then back off
    ├── overload    429, 503, 529                         back off or as told; no attempt spent
    ├── timeout     no reply in the derived time          one more try
    ├── server      500, 502, 504, broken body            back off, bounded
    ├── request     400, 413, 422, prompt too long        failed at once, in the server's words
    ├── truncated   finish_reason length                  once with a larger budget, then invalid
    ├── reasoning   budget spent on reasoning             lower effort, larger budget, then invalid
    ├── empty       content null or blank with stop       one more try, then invalid
    ├── schema      not the schema                        re-ask with the error, then invalid
    └── poison      delivered more than k times           failed; never a loop

A key, a model or a path that a server refuses (401, 403, 404) is `request` too, but it is the
endpoint's fault and not an item's: every item would fail there. So it spends no attempt, as connect
and overload do: the items wait until it is put right. The same goes for timeout and server in an
outage; `fanout_workers.attempts` says how one is told from an item's own failure.

A kind that ends an item as *invalid* keeps the model's last reply: the model answered, the answer
is no good. A kind that ends it as *failed* means that no answer came.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fanout.wire import Usage


class Kind(StrEnum):
    """The kinds of failure; the value is what records, reports and metrics show."""

    CONNECT = "connect"
    OVERLOAD = "overload"
    TIMEOUT = "timeout"
    SERVER = "server"
    REQUEST = "request"
    TRUNCATED = "truncated"
    REASONING = "reasoning"
    EMPTY = "empty"
    SCHEMA = "schema"
    POISON = "poison"

    @property
    def ends_as(self) -> str:
        """The status of an item that ends with this kind: `invalid` or `failed`."""
        return "invalid" if self in _ANSWERED else "failed"


_ANSWERED = frozenset({Kind.TRUNCATED, Kind.REASONING, Kind.EMPTY, Kind.SCHEMA})

_STATUS = {
    429: Kind.OVERLOAD,
    503: Kind.OVERLOAD,
    529: Kind.OVERLOAD,
    408: Kind.TIMEOUT,
    500: Kind.SERVER,
    502: Kind.SERVER,
    504: Kind.SERVER,
}


#: HTTP statuses of a refused request that are the endpoint's fault, never an item's: the key, the
#: model or the path is wrong there, or its URL leads to another one.
MISFIT = frozenset({301, 302, 303, 307, 308, 401, 403, 404})


def kind_of_status(status: int) -> Kind:
    """Failure kind of an HTTP status that is not 2xx.

    vLLM with a bounded queue answers 503 where others answer 429; 529 is Anthropic's overload.
    A redirect is a wrong URL in the configuration: it is not followed, for it would take documents
    and the key to another host.
    """
    if known := _STATUS.get(status):
        return known
    return Kind.SERVER if status >= 500 else Kind.REQUEST


class Failure(Exception):
    """One request failed.

    Args:
        kind: what failed.
        message: one sentence, in the server's words where it gave any.
        status: HTTP status, if a response came.
        retry_after: seconds the server asked to wait, if it did.
        raw: the reply as it came (bounded by the caller), kept in the record.

    Attributes:
        usage: tokens that the try cost, as far as the server said; they count although it failed.
        finish_reason: why the server ended a reply that is no good.
        excused: whether it says nothing about the item, and spends none of its attempts.
        hung_up: whether the server took the connection and closed it without a reply.
        final: whether no further try is to be made.
    """

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        raw: str | None = None,
    ) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message
        self.status = status
        self.retry_after = retry_after
        self.raw = raw
        self.usage: Usage | None = None
        self.finish_reason: str | None = None
        self.excused = False
        self.hung_up = False
        self.final = False

    @property
    def is_endpoints(self) -> bool:
        """Whether this can only be the endpoint's fault: every item would fail there."""
        if self.kind is Kind.REQUEST:
            return self.status in MISFIT
        return self.kind in (Kind.CONNECT, Kind.OVERLOAD)


#: Longest pause in seconds that a server's Retry-After can ask for.
RETRY_AFTER_MAX = 600.0


@dataclass(frozen=True, slots=True)
class Policy:
    """What follows when a request fails with one kind.

    Attributes:
        tries: requests in all that may end with this kind before the item ends (1 = no retry).
        backoff: first pause in seconds, doubled at each further try; 0 = at once.
        backoff_max: longest pause in seconds.
        at_once: the first retry does not wait.
    """

    tries: int
    backoff: float = 0.0
    backoff_max: float = 60.0
    at_once: bool = False

    def pause(self, failed: int, retry_after: float | None = None) -> float:
        """Seconds to wait after the `failed`-th failure (1-based), before jitter.

        Never less than a server asks for with Retry-After, and never less than the back-off: a
        server that says 0 would be asked without end.
        """
        asked = min(retry_after or 0.0, RETRY_AFTER_MAX)
        doublings = failed - 1 - self.at_once
        if doublings < 0:
            return asked
        # The exponent is bounded: an outage of hours must not overflow a float.
        return max(asked, min(self.backoff * 2.0 ** min(doublings, 30), self.backoff_max))


#: Failures of one item at most that are not counted because they are the endpoint's. While its
#: circuit is open nothing is asked there, so this bounds a run that nobody watches: hours.
EXCUSED_TRIES = 1000

POLICIES: dict[Kind, Policy] = {
    # At once first: most often it is only a kept-alive connection that the server has closed.
    Kind.CONNECT: Policy(EXCUSED_TRIES, backoff=0.5, backoff_max=10.0, at_once=True),
    Kind.OVERLOAD: Policy(EXCUSED_TRIES, backoff=1.0, backoff_max=10.0),
    Kind.TIMEOUT: Policy(tries=2),
    Kind.SERVER: Policy(tries=4, backoff=1.0, backoff_max=30.0),
    Kind.REQUEST: Policy(tries=1),
    Kind.TRUNCATED: Policy(tries=2),
    Kind.REASONING: Policy(tries=3),
    Kind.EMPTY: Policy(tries=2),
    Kind.SCHEMA: Policy(tries=3),
    Kind.POISON: Policy(tries=1),
}

#: What a person can do about each kind; shown in reports beside the count.
ADVICE: dict[Kind, str] = {
    Kind.CONNECT: "the endpoint did not answer: check its url, and that the server runs",
    Kind.OVERLOAD: "the server refused work: lower the endpoint's concurrency",
    Kind.TIMEOUT: "no reply in the derived time: raise timeout_s, or lower max_tokens or N",
    Kind.SERVER: "the server broke: look into its log",
    Kind.REQUEST: "the server refused the request: see its words in the record",
    Kind.TRUNCATED: "the reply was cut at max_tokens: raise max_tokens or bound the schema",
    Kind.REASONING: "the model spent its budget on reasoning: set reasoning_effort = low",
    Kind.EMPTY: "the model answered nothing: try another prompt or temperature",
    Kind.SCHEMA: "the reply is not the schema: simplify the schema, or use a larger model",
    Kind.POISON: "the item ended its worker each time: look into the worker's log",
}
