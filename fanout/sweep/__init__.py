"""What a sweep of N is made of, without any load: points, search, analysis, tables and charts.

The load itself is `fanout_workers.sweep`.
"""
