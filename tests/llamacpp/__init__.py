"""
The exporter beside a real llama.cpp server: ``make test-llamacpp``.

``model`` makes a random model in a second, ``server`` runs llama-server on it; the client that logs the
truth, the exporter as a process and the reading of pages are those of the tests on a real vLLM. The server is
built by ``tools/install_llamacpp.py``.
"""
