"""Compare live LLM-serving traffic with the plan its GPU was sized for."""

__version__ = "0.1.0"
