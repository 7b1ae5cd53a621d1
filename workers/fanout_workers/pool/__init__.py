"""An asyncio worker pool for Celery: `worker_pool = "fanout_workers.pool:AsyncPool"`.

Tasks written as `async def` run together on one event loop. It needs nothing else of fanout.
"""

from .direct import run_directly
from .loop import on_loop_start, on_loop_stop, run_on_loop
from .pool import AsyncPool

__all__ = ["AsyncPool", "on_loop_start", "on_loop_stop", "run_directly", "run_on_loop"]
