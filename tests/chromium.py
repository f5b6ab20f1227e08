"""A headless Chromium, driven over its own DevTools protocol: no driver program, no further package."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import struct
import tempfile
import time
import zlib
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SECONDS = 30.0
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # tests run as root in containers, where its sandbox cannot start
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    # Whatever the page might ask of the world stays here, and is seen to fail.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--remote-debugging-port=0",
)


# The browser's own canvas does the arithmetic: the 256 most frequent colours (6 bits each), and for every
# other one the nearest of them.
_TO_PALETTE = """
async (png) => {
  const bytes = Uint8Array.from(atob(png), (char) => char.charCodeAt(0));
  const image = await createImageBitmap(new Blob([bytes]));
  const context = new OffscreenCanvas(image.width, image.height).getContext("2d");
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, image.width, image.height);
  const coarse = (i) => (data[i] >> 2) | ((data[i + 1] >> 2) << 6) | ((data[i + 2] >> 2) << 12);
  const seen = new Map();
  for (let i = 0; i < data.length; i += 4) {
    const entry = seen.get(coarse(i));
    if (entry) entry.times += 1;
    else seen.set(coarse(i), { times: 1, colour: [data[i], data[i + 1], data[i + 2]] });
  }
  const all = [...seen.values()].sort((a, b) => b.times - a.times);
  const palette = all.slice(0, 256).map((entry) => entry.colour);
  const far = (a, b) => a.reduce((sum, value, k) => sum + (value - b[k]) ** 2, 0);
  for (const entry of all) {
    entry.index = 0;
    for (let k = 1; k < palette.length; k += 1)
      if (far(entry.colour, palette[k]) < far(entry.colour, palette[entry.index])) entry.index = k;
  }
  const pixels = new Uint8Array(data.length / 4);
  for (let i = 0; i < data.length; i += 4) pixels[i / 4] = seen.get(coarse(i)).index;
  const text = (array) => {
    let out = "";
    for (let i = 0; i < array.length; i += 8192) out += String.fromCharCode(...array.slice(i, i + 8192));
    return btoa(out);
  };
  return { width: image.width, palette: text(palette.flat()), pixels: text(pixels) };
}
"""


def _png(width: int, palette: bytes, pixels: bytes) -> bytes:
    """A PNG of indexed colours, without filters: they only hurt such pictures."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    rows = b"".join(b"\0" + pixels[i : i + width] for i in range(0, len(pixels), width))
    header = struct.pack(">IIBBBBB", width, len(pixels) // width, 8, 3, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"PLTE", palette)
        + chunk(b"IDAT", zlib.compress(rows, 9))
        + chunk(b"IEND", b"")
    )


@dataclass
class Tab:
    """One page, and everything it asked for and complained about."""

    socket: aiohttp.ClientWebSocketResponse
    session: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    _answers: dict[int, asyncio.Future[Any]] = field(default_factory=dict)
    _next: int = 100

    async def send(self, method: str, **parameters: Any) -> Any:
        """One command of the protocol; its result."""
        self._next += 1
        number = self._next
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self.socket.send_json(
            {"id": number, "method": method, "params": parameters, "sessionId": self.session}
        )
        return await asyncio.wait_for(answer, SECONDS)

    async def listen(self) -> None:
        """Sort what comes in, until the browser ends."""
        async for message in self.socket:
            said = json.loads(message.data)
            future = self._answers.pop(said.get("id", 0), None)
            if future is not None and not future.done():
                if "error" in said:
                    future.set_exception(AssertionError(said["error"]["message"]))
                else:
                    future.set_result(said["result"])
            self._note(said.get("method", ""), said.get("params", {}))

    def _note(self, method: str, said: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = said["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.complaints.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")

    async def open(self, url: str) -> None:
        """Go to an address."""
        await self.send("Page.navigate", url=url)

    async def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        found = await self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in found:
            raise AssertionError(found["exceptionDetails"]["exception"].get("description", found))
        return found["result"].get("value")

    async def text(self, selector: str) -> str:
        """What a reader sees of an element."""
        return str(
            await self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")
        )

    async def until(self, script: str, seconds: float = SECONDS) -> Any:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while True:
            try:
                value = await self.run(script)
            except AssertionError:
                value = None  # the page is on its way
            if value:
                return value
            if time.monotonic() > end:
                raise AssertionError(f"not within {seconds} s: {script}")
            await asyncio.sleep(0.1)

    async def size(self, width: int, height: int = 900, *, mobile: bool = False) -> None:
        """How large the window is, in CSS pixels."""
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=mobile,
        )

    async def scheme(self, name: str) -> None:
        """Light or dark."""
        feature = {"name": "prefers-color-scheme", "value": name}
        await self.send("Emulation.setEmulatedMedia", features=[feature])

    async def screenshot(self, path: Path) -> None:
        """The whole page as a PNG of 256 colours: half the size, and nobody sees the difference."""
        shot = await self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        found = await self.run(f"({_TO_PALETTE})({json.dumps(shot['data'])})")
        path.write_bytes(  # noqa: ASYNC240 - a test
            _png(
                found["width"],
                base64.b64decode(found["palette"]),
                base64.b64decode(found["pixels"]),
            )
        )


@asynccontextmanager
async def chromium() -> AsyncIterator[Tab]:
    """A browser with one empty tab; ends with its processes and its profile gone."""
    program = shutil.which("chromium")
    if program is None:
        raise RuntimeError("no chromium on this machine: apt-get install chromium")
    profile = Path(tempfile.mkdtemp(prefix="headroom-chromium-"))
    process = await asyncio.create_subprocess_exec(
        program,
        *FLAGS,
        f"--user-data-dir={profile}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        address = await _address(profile / "DevToolsActivePort", process)
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(address, max_msg_size=0) as socket,
        ):
            tab = await _tab(socket)
            listening = asyncio.create_task(tab.listen())
            try:
                for domain in ("Page", "Network", "Runtime", "Log"):
                    await tab.send(f"{domain}.enable")
                yield tab
            finally:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        await _remove(profile)


def _lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


async def _address(port_file: Path, process: asyncio.subprocess.Process) -> str:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and process.returncode is None:
        if len(lines := _lines(port_file)) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        await asyncio.sleep(0.05)
    raise RuntimeError(f"chromium did not start within {SECONDS} s (exit {process.returncode})")


async def _tab(socket: aiohttp.ClientWebSocketResponse) -> Tab:
    async def ask(number: int, method: str, **parameters: Any) -> Any:
        await socket.send_json({"id": number, "method": method, "params": parameters})
        while (said := await socket.receive_json(timeout=SECONDS)).get("id") != number:
            pass
        return said["result"]

    target = (await ask(1, "Target.createTarget", url="about:blank"))["targetId"]
    attached = await ask(2, "Target.attachToTarget", targetId=target, flatten=True)
    return Tab(socket=socket, session=attached["sessionId"])


async def _remove(profile: Path) -> None:
    """Its helpers may write for a moment after they were killed."""
    for _ in range(50):
        try:
            shutil.rmtree(profile)
        except OSError:
            await asyncio.sleep(0.1)
        else:
            return
    raise RuntimeError(f"{profile} cannot be removed")
