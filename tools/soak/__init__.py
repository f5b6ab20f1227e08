"""
An hour of misery for a real exporter process, and what the process costs.

    PYTHONPATH=tools:tests python -m soak run --seconds 3600      soak it, print the verdict
    PYTHONPATH=tools:tests python -m soak costs                   measure what requests and limits need
    PYTHONPATH=tools:tests python -m soak page --soak FILE... --costs FILE    write docs/resources.md

The world (engines, API server, kubelet, GPUs, scrapers, the configuration file) is one process that
misbehaves by a seed, the exporter another; this one samples and judges.
"""
