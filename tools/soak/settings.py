"""The configuration file, swapped as the kubelet swaps a ConfigMap, rightly and wrongly; the GPUs' script."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from pathlib import Path

BASE = """\
engines:
  - {{name: outside-0, url: "{outside-0}"}}
  - {{name: outside-1, url: "{outside-1}"}}
discovery:
  kubernetes: {{}}
  kubelet: {{socket: {socket}}}
plans:
  - {{name: all, max_num_seqs: 16, concurrency: 8, kv_cache_tokens: 100000, request_rate: 2}}
"""
# Nothing but node mode: what is measured, not soaked.
ALONE = "discovery:\n  kubernetes: {{}}\n  kubelet: {{enabled: false}}\n"
ALONE_MAPPED = "discovery:\n  kubernetes: {{}}\n  kubelet: {{socket: {socket}}}\n"
# Valid ones, each with something that has to be started, stopped or forgotten.
VALID = {
    "base": BASE,
    "one engine less": BASE.replace('  - {{name: outside-1, url: "{outside-1}"}}\n', ""),
    "another name": BASE.replace("name: outside-1", "name: outside-renamed"),
    "faster": BASE + "poll: {{interval: 500ms}}\n",
    "no GPUs": BASE + "gpus: {{enabled: false}}\n",
    "one GPU": BASE + "gpus: {{devices: [0], interval: 500ms}}\n",
    "no kubelet": BASE.replace("{{socket: {socket}}}", "{{enabled: false}}"),
    "selector": BASE.replace("kubernetes: {{}}", "kubernetes: {{label_selector: app=vllm}}"),
    "namespaces": BASE.replace("kubernetes: {{}}", "kubernetes: {{namespaces: [chat, other]}}"),
    "no plans": BASE[: BASE.index("plans:")],
    "hundred plans": BASE
    + "".join(f"  - {{{{name: p{n}, match: {{{{engine: e{n}}}}}}}}}\n" for n in range(100)),
}
INVALID = {
    "unknown key": BASE + "nonsense: 1\n",
    "no YAML": "engines: [\n{{",
    "bad number": BASE + "poll: {{interval: -3}}\n",
    "bytes": "\x00\x01\x02",
    "twice": BASE + "plans: []\n",
    "too large": BASE + "#" * 2_000_000,
}
NVML_FUNCTIONS = (
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetCount_v2",
    "*",
)
GPUS = "gpus - - 4\n"


class ConfigMap:
    """
    A mounted ConfigMap: ``config.yaml`` leads through ``..data`` to a folder of the newest version.

    Args:
        folder: Where it is mounted.
        places: What the texts above have in braces.
        text: The first version.
    """

    def __init__(self, folder: Path, places: dict[str, str], text: str = BASE) -> None:
        self._folder, self._places = folder, places
        self._version = 0
        folder.mkdir(parents=True)
        self.path = folder / "config.yaml"
        self.write(text)
        self.path.symlink_to("..data/config.yaml")

    def write(self, text: str) -> None:
        """Swap in a new version, and delete the old one."""
        before = self._folder / f"..{self._version}"
        self._version += 1
        now = self._folder / f"..{self._version}"
        now.mkdir()
        (now / "config.yaml").write_text(text.format_map(self._places), encoding="utf-8")
        link = self._folder / "..data_tmp"
        link.symlink_to(now.name)
        link.replace(self._folder / "..data")
        shutil.rmtree(before, ignore_errors=True)


def gpu_trouble(chance: random.Random) -> tuple[str, str]:
    """What goes wrong with the GPUs: its name, and the fake library's script."""
    gpu, function = chance.randrange(4), chance.choice(NVML_FUNCTIONS)
    return chance.choice(
        [
            ("lost", f"{GPUS}lose - {gpu} 0\n"),
            ("hangs", f"{GPUS}hang {function} * 0\n"),
            ("fails", f"{GPUS}fail {function} * {chance.choice([3, 15, 999])}\n"),
            ("fewer", "gpus - - 1\n"),
            ("more", "gpus - - 8\n"),
            ("none", "gpus - - 0\n"),
            ("mig", f"{GPUS}mig - {gpu} 7\n"),
            ("start fails", f"{GPUS}lose - {gpu} 0\nfail nvmlInitWithFlags - 9\n"),
        ]
    )
