"""What runs in a worker process: the Celery app, the asyncio pool, permits and the model client."""
