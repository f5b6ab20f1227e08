"""Write docs/validation.md from the figures that `make test-vllm` left (HEADROOM_FIGURES)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "validation.md"
INTRO = """# Proven on a real vLLM

Written by `make validation`, which runs `make test-vllm`: vLLM 0.32 on the CPU of a shared machine
with two cores, a tiny random Llama, real scheduler, real cache manager, real API server; a load
client that logs every request; the exporter polling at 4 Hz. The tests hold each figure against
what stands beside it.

What is not in the exporter's demand and is in the client's: the time a request spends in HTTP,
tokenizer and detokenizer, and the moment between a step's end and the next one's start, when a
finished sequence has left the gauge and its successor has not come.
"""


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def main() -> int:
    """Render the figures file given as the only argument."""
    figures = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    lines, test = [INTRO], None
    for figure in figures:
        if figure["test"] != test:
            test = figure["test"]
            title = test.removeprefix("test_").replace("_", " ")
            lines += [f"\n## {title}\n", "| figure | value | held against |", "|---|---|---|"]
        value = figure["value"]
        shown = value if isinstance(value, str) else _shown(value)
        lines.append(f"| {figure['name']} | {shown} {figure['unit']} | {figure['expected']} |")
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
