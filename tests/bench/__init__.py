"""
What the exporter costs the engine and its neighbours: ``make bench``. Measures, asserts nothing.

``bench`` is the command. The parts: ``engine_cost`` (a real vLLM, filtered page against full),
``fleet`` (the exporter as a process beside 1, 8 and 32 engines, and a naive loop beside it),
``latency`` (its /metrics), ``micro`` (the steps of one poll, in this process), ``status_page`` (the page's
history and answers, in this process), ``visiting`` (the page's bytes, and a visitor of the running exporter),
``replaying`` (a day in virtual time), ``backtesting`` (the same, judged by the shipped rules). ``engines``
and ``naive`` are the processes they start, ``process`` reads /proc, ``report`` prints.
"""
