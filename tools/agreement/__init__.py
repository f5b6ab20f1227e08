"""The simulated engine against recorded runs of a real vLLM; see docs/simulator-validation.md."""
