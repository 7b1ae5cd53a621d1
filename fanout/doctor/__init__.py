"""Whether Redis, the workers and the model servers can do what a job will ask of them.

Everything is asked of the real servers. A model server gets one tiny request whose JSON Schema
can only be met by a server that enforces it.
"""

from __future__ import annotations

import asyncio

import httpx

from fanout.doctor.endpoint import QUICK_S, EndpointCheck
from fanout.doctor.finding import Finding, Level, worst
from fanout.doctor.redis import check_redis
from fanout.settings import Settings

__all__ = ["Finding", "Level", "check", "worst"]


async def check(
    settings: Settings,
    *,
    max_tokens: int = 1024,
    transport: httpx.AsyncBaseTransport | None = None,
) -> list[Finding]:
    """Look at Redis, the workers and every endpoint; never raises for what it finds.

    Args:
        settings: what is configured.
        max_tokens: completion tokens that one request of the coming job may take.
        transport: connections to the endpoints, for tests.
    """
    async with httpx.AsyncClient(transport=transport, timeout=QUICK_S, trust_env=False) as client:
        parts = await asyncio.gather(
            check_redis(settings),
            *(
                EndpointCheck(endpoint, client, max_tokens).run()
                for endpoint in settings.endpoint.values()
            ),
        )
    findings = [finding for part in parts for finding in part]
    if not settings.endpoint:
        findings.append(Finding("endpoints", "configured", "fail", "no endpoint is configured"))
    return findings
