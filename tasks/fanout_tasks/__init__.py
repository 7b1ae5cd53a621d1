"""The task kinds that ship: extraction, code review and agent sub-tasks.

They use fanout's public names only, as a user's own kind would.
"""
