"""fanout's own client: `python submit.py REDIS COUNT`: submits all, then collects all.

Prints one line of JSON when everything has been submitted, and one when all has been collected.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter

from workload import MAX_TOKENS, PROMPT, SCHEMA, documents

import fanout


async def main(redis_url: str, count: int) -> None:
    async with fanout.connect(redis_url) as client:
        began, cpu = time.monotonic(), time.process_time()
        job = await client.submit(
            "extract",
            documents(count),
            window=2 * count,
            schema=SCHEMA,
            prompt=PROMPT,
            show_schema=False,
            max_tokens=MAX_TOKENS,
        )
        await job.submitted()
        spent = {"seconds": time.monotonic() - began, "cpu_s": time.process_time() - cpu}
        print(json.dumps(spent), flush=True)
        cpu = time.process_time()
        statuses: Counter[str] = Counter()
        async for batch in job.batches():
            statuses.update(record.status for record in batch)
        print(json.dumps({"statuses": statuses, "cpu_s": time.process_time() - cpu}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
