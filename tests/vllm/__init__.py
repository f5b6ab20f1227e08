"""
The exporter beside a real vLLM on this machine's CPU: ``make test-vllm``.

``model`` makes a tiny model, ``server`` runs vLLM on it, ``client`` loads it and logs the truth,
``exporter`` runs the exporter, ``scrape`` reads pages. The interpreter of vLLM is another one
than the tests' own: see ``tools/install_vllm.py``.
"""
