"""An embedded stand-in for a vLLM server: one engine for the demo, the tests and the backtest."""
