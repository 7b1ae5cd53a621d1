"""The client: submit work, follow it, collect what it comes to.

async with fanout.connect() as fo:
    job = await fo.submit("extract", docs, schema=Posting)
    async for record in job.records():
        ...
"""

from fanout.client.connection import Fanout, connect
from fanout.client.documents import Doc, Docs, payload_of
from fanout.client.job import Job, new_job_id
from fanout.client.ledger import Ledger
from fanout.client.resumption import ChangedInput

__all__ = [
    "ChangedInput",
    "Doc",
    "Docs",
    "Fanout",
    "Job",
    "Ledger",
    "connect",
    "new_job_id",
    "payload_of",
]
