"""The path of a page, from an engine to whoever is woken: Prometheus, Alertmanager and a webhook."""
