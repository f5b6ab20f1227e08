"""The scoreboard: our rules and everyone's, on the same traffic (``make backtest``)."""
