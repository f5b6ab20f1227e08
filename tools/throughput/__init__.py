"""Published serving measurements against the simulator's step-time model; see docs/throughput.md."""
