"""The Grafana boards as code: ``build.py`` beside this package writes their JSON."""
