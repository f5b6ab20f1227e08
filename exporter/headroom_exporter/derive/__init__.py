"""
From samples to headroom: pure functions, and small memories fed with (time, sample).

Nothing here reads a clock, a file or a socket; the time is an argument.
"""
