"""A Celery project of somebody else, which uses fanout's pool and nothing else of fanout."""
