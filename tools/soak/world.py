"""
The world around one exporter, in one process. Commands are lines on standard input, answers JSON lines.

    python -m soak.world FOLDER SEED PODS KIND HASTE

KIND is a key of TEXTS: but for ``base`` no engine stands in the configuration file, which then asks for node
mode and nothing else. HASTE: how many times as often things go wrong, for so much shorter.

    start PORT PID   scrapers and reloads begin       wild        things go wrong
    calm             all heals                        invalid     a wrong configuration, and SIGHUP
    valid            the right one, and SIGHUP        empty       every pod is deleted
    all FAULT        every engine fails in this way, for good
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bench.engines import Fleet
from discovery.fake_api import FakeApi
from discovery.fake_kubelet import FakeKubelet
from soak import settings
from soak.cluster import Cluster
from soak.scrapers import Scrapers

# Seconds, on average.
RELOAD_CALM, GPU_CALM = 25.0, 30.0
TEXTS = {
    "base": settings.BASE,
    "alone": settings.ALONE,
    "alone_mapped": settings.ALONE_MAPPED,
}


def authority(folder: Path) -> SSLContext:
    """A cluster's certificate and token in a service account's files."""
    folder.mkdir(parents=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kubernetes")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "token").write_text("token\n")
    (folder / "ca.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret = folder / "key"
    coding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    secret.write_bytes(key.private_bytes(coding, form, serialization.NoEncryption()))
    context = SSLContext(PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.crt", secret)
    return context


class World:
    """Everything, once it stands."""

    def __init__(self, folder: Path, seed: int, pods: int, cluster: Cluster, haste: float) -> None:
        self._folder, self._haste = folder, haste
        self._chance = random.Random(f"world {seed}")  # noqa: S311
        self._pods = [f"pod-{number}" for number in range(pods)]
        self._cluster = cluster
        self._pid = 0
        self._map: settings.ConfigMap | None = None
        self._scrapers: Scrapers | None = None
        self.tasks: list[asyncio.Task[None]] = []

    async def build(self, socket: Path, kind: str) -> None:
        """The engines, all well, and the configuration file that leads to them."""
        places = {"socket": str(socket)}
        for number in range(2 if kind == "base" else 0):
            name = f"outside-{number}"
            await self._cluster.stranger(name, f"127.0.6.{number + 1}")
            engine = self._cluster.outside[name]
            places[name] = f"http://{engine.address}:{engine.port}"
        for name in self._pods:
            await self._cluster.begin(name)
        self._map = settings.ConfigMap(self._folder / "etc", places, TEXTS[kind])
        self.gpus(settings.GPUS if kind == "base" else "gpus - - 8\n")

    def gpus(self, script: str) -> None:
        """Replace the GPUs' script, all at once."""
        fresh = self._folder / "nvml.new"
        fresh.write_text(script)
        fresh.replace(self._folder / "nvml.script")

    async def obey(self, line: str) -> dict[str, Any]:
        """Do one command."""
        word, *rest = line.split()
        if word == "start":
            self._pid = int(rest[1])
            self._scrapers = Scrapers(int(rest[0]), self._chance)
            self._spawn(self._scrapers.run())
            for each in (
                self._cluster.engines_fail(self._pods),
                self._cluster.api_fails(),
                self._cluster.bookmarks(),
                self._reloads(),
                self._gpus_fail(),
            ):
                self._spawn(each)
        elif word == "wild":
            self._cluster.wild = True
        elif word == "calm":
            await self._cluster.calm(self._pods)
            self.gpus(settings.GPUS)
            self._configure(settings.BASE, at_once=True)
        elif word == "invalid":
            self._configure(settings.INVALID["unknown key"], at_once=True)
        elif word == "valid":
            self._configure(settings.BASE, at_once=True)
        elif word == "all":
            for engine in self._cluster.engines.values():
                await engine.fail(rest[0])
        elif word == "empty":
            for name in list(self._cluster.engines):
                await self._cluster.end(name)
        return self._told()

    def _told(self) -> dict[str, Any]:
        cluster, scrapers = self._cluster, self._scrapers
        names = [*cluster.outside, *(f"chat/{name}" for name in cluster.engines)]
        told: dict[str, Any] = {"engines": sorted(names), "faults": cluster.faults}
        if scrapers is not None:
            told |= {
                "scrapes": scrapers.scrapes,
                "failures": scrapers.failures,
                "seconds": sorted(scrapers.seconds),
            }
        return told

    def _spawn(self, work: Any) -> None:
        self.tasks.append(asyncio.create_task(work))

    def _configure(self, text: str, *, at_once: bool) -> None:
        assert self._map is not None  # noqa: S101
        self._map.write(text)
        if at_once:
            os.kill(self._pid, signal.SIGHUP)

    async def _reloads(self) -> None:
        while True:
            await asyncio.sleep(self._chance.expovariate(self._haste / RELOAD_CALM))
            if not self._cluster.wild:
                continue
            texts = self._chance.choice([settings.VALID, settings.INVALID])
            name = self._chance.choice(list(texts))
            faults = self._cluster.faults
            key = f"configuration: {name}"
            faults[key] = faults.get(key, 0) + 1
            self._configure(texts[name], at_once=self._chance.random() < 0.5)

    async def _gpus_fail(self) -> None:
        while True:
            await asyncio.sleep(self._chance.expovariate(self._haste / GPU_CALM))
            if self._cluster.wild:
                name, script = settings.gpu_trouble(self._chance)
                key = f"GPU {name}"
                self._cluster.faults[key] = self._cluster.faults.get(key, 0) + 1
                self.gpus(script)
                await asyncio.sleep(self._chance.uniform(2.0, 25.0 / self._haste))
                self.gpus(settings.GPUS)


async def main(folder: Path, seed: int, pods: int, kind: str, haste: float) -> None:
    """Stand until standard input ends."""
    async with AsyncExitStack() as stack:
        api = FakeApi(
            watch_seconds=240.0,
            remembers=60,
            token="token",  # noqa: S106
            tls=authority(folder / "serviceaccount"),
        )
        await stack.enter_async_context(api)
        socket = folder / "kubelet.sock"
        kubelet = stack.enter_context(FakeKubelet(socket))
        cluster = Cluster(api, kubelet, Fleet(), seed, haste)
        stack.push_async_callback(cluster.close)
        world = World(folder, seed, pods, cluster, haste)
        await world.build(socket, kind)
        first = next(iter(cluster.engines.values()))
        say({"api": api.url, "engine": f"http://{first.address}:{first.port}"})
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := (await reader.readline()).decode():
            say(await world.obey(line))
            for task in world.tasks:
                if task.done():
                    task.result()
            # What the API server was asked would grow for ever.
            api.asked.clear()
        for task in world.tasks:
            task.cancel()
        await asyncio.gather(*world.tasks, return_exceptions=True)


def say(what: dict[str, Any]) -> None:
    """One line to whoever started this."""
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    _, where, seed_text, pods_text, kind_text, haste_text = sys.argv
    asyncio.run(main(Path(where), int(seed_text), int(pods_text), kind_text, float(haste_text)))
