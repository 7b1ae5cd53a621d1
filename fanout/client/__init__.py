"""The client: submit work, follow it, collect what it comes to.

async with fanout.connect() as fo:
    job = await fo.submit("extract", docs, schema=Posting)
    async for record in job.records():
        ...
"""

from fanout.client.connection import Fanout, connect
from fanout.client.documents import Doc, payload_of
from fanout.client.job import Job, new_job_id

__all__ = ["Doc", "Fanout", "Job", "connect", "new_job_id", "payload_of"]
