"""Whether the endpoints of a worker answer, as the worker sees them.

The client may sit where it cannot reach a model server at all, so what counts is what the
workers see; their reports carry it. What is seen here also drives the circuits: one that is open
becomes half open only after its endpoint has answered, so that a dead server costs no item a try.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from fanout import ConfigError, Failure, Kind
from fanout_workers.model import ModelClient
from fanout_workers.permits import Permits

_TIMEOUT_S = 5.0
#: Seconds that a canary may take, doubled with each that has failed: a server with a long queue
#: answers late, one that is down never.
_CANARY_S = 10.0
#: HTTP statuses of a list of models that is not given to us, although the server is well.
_NO_LIST = frozenset({400, 404, 405, 501})


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a look has shown: a problem in words, and whether requests would fail as well."""

    problem: str | None = None
    is_unfit: bool = False
    failure: Failure | None = None


class Health:
    """Asks each endpoint for its models, and tells its circuit.

    Args:
        clients: the model clients, by endpoint name.
        permits: of the same endpoints; has their circuits.
    """

    def __init__(self, clients: Mapping[str, ModelClient], permits: Permits) -> None:
        self._clients = clients
        self._permits = permits
        self._circuits = {name: permits.load(name).circuit for name in clients}
        self._canaries: set[asyncio.Task[None]] = set()

    async def problems(self, *, first: bool = False) -> dict[str, str]:
        """What is wrong, by endpoint name; an endpoint that is well is left out.

        Args:
            first: nothing has been asked of the endpoints yet: what is unfit is not tried first.
        """
        # An epoch: a refusal that was on its way while the circuit changed says nothing.
        epochs = {name: circuit.epoch for name, circuit in self._circuits.items()}
        found = await asyncio.gather(*(_look_at(client) for client in self._clients.values()))
        problems: dict[str, str] = {}
        for name, seen in zip(self._clients, found, strict=True):
            circuit = self._circuits[name]
            if first and seen.is_unfit and seen.problem:
                circuit.trip(seen.problem)
            elif circuit.state == "closed" and seen.failure is not None:
                if seen.failure.kind is Kind.CONNECT:
                    circuit.failed(epochs[name], seen.failure)
            else:
                circuit.looked_at(seen.problem if seen.is_unfit else None)
            if circuit.wants_canary:
                self._send_canary(name)
            if problem := seen.problem or circuit.problem:
                problems[name] = problem
        return problems

    def _send_canary(self, name: str) -> None:
        # Beside the looks: its reply may take longer than a report may wait.
        canary = asyncio.create_task(self._probe(name), name="canary")
        self._canaries.add(canary)
        canary.add_done_callback(self._canaries.discard)

    async def _probe(self, name: str) -> None:
        client, circuit = self._clients[name], self._circuits[name]
        if not circuit.wants_canary:
            return
        doubled = _CANARY_S * 2.0 ** min(circuit.openings - 1, 10)
        with self._permits.probe(name) as epoch:
            if epoch is None:  # the next look tries again
                return
            try:
                await client.canary(min(doubled, max(_CANARY_S, client.longest_s)))
            except Failure as failure:
                circuit.failed(epoch, failure)
            else:
                circuit.answered(epoch)


async def _look_at(client: ModelClient) -> _Seen:
    endpoint = client.endpoint
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            served = await client.models()
    except TimeoutError:
        return _Seen(f"{endpoint.url} does not answer within {_TIMEOUT_S:g} s", is_unfit=True)
    except Failure as failure:
        return _Seen(failure.message, failure.status not in _NO_LIST, failure)
    except ConfigError as error:
        return _Seen(str(error))
    if endpoint.model and endpoint.model not in served:
        listed = ", ".join(served) or "nothing"
        return _Seen(f"it does not serve {endpoint.model!r}, but {listed}", is_unfit=True)
    if endpoint.model is None and len(served) != 1:
        listed = ", ".join(served) or "no model"
        return _Seen(f"it serves {listed}: name one in its `model`", is_unfit=True)
    return _Seen()
