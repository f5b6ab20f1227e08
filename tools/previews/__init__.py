"""Previews of the Grafana boards, drawn from what a real Prometheus answered (``boards_preview.py``)."""
