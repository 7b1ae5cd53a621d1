"""The load of a sweep: requests held in flight at one endpoint, measured at one N after another.

It goes straight to the endpoint: a sweep needs no Redis and no worker.
"""
