"""Whether the endpoints of a worker answer, as the worker sees them.

The client may sit where it cannot reach a model server at all, so what counts is what the
workers see; their reports carry it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from fanout import ConfigError, Failure
from fanout_workers.model import ModelClient

_TIMEOUT_S = 5.0


class Health:
    """Asks each endpoint for its models.

    Args:
        clients: the model clients, by endpoint name.
    """

    def __init__(self, clients: Mapping[str, ModelClient]) -> None:
        self._clients = clients

    async def problems(self) -> dict[str, str]:
        """What is wrong, by endpoint name; an endpoint that is well is left out."""
        found = await asyncio.gather(*(self._problem(c) for c in self._clients.values()))
        return {name: text for name, text in zip(self._clients, found, strict=True) if text}

    async def _problem(self, client: ModelClient) -> str | None:
        endpoint = client.endpoint
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                served = await client.models()
        except TimeoutError:
            return f"{endpoint.url} does not answer within {_TIMEOUT_S:g} s"
        except (Failure, ConfigError) as error:
            return getattr(error, "message", str(error))
        if endpoint.model and endpoint.model not in served:
            return f"it does not serve {endpoint.model!r}, but {', '.join(served) or 'nothing'}"
        if endpoint.model is None and len(served) != 1:
            return f"it serves {', '.join(served) or 'no model'}: name one in its `model`"
        return None
