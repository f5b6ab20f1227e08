"""
What the exporter costs the engine and its neighbours: ``make bench``. Measures, asserts nothing.

``bench`` is the command. The four parts: ``engine_cost`` (a real vLLM, filtered page against full),
``fleet`` (the exporter as a process beside 1, 8 and 32 engines, and a naive loop beside it),
``latency`` (its /metrics), ``micro`` (the steps of one poll, in this process). ``engines`` and
``naive`` are the processes they start, ``process`` reads /proc, ``report`` prints.
"""
