"""What the shipped rules cost a real Prometheus: `make rules-cost` writes docs/rules-cost.md."""
