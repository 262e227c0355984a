"""A headless Chromium, driven over its DevTools protocol: what a person sees and does on a page.

``SPECPROXY_CHROMIUM`` names the program; otherwise the usual names are looked for.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
import re
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
WAIT_S = 10.0
START_S = 30.0
FLAGS = (
    "--headless", "--remote-debugging-port=0", "--no-first-run", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
    "--disable-dev-shm-usage", "--disable-extensions", "--disable-background-networking", "--no-proxy-server",
)  # fmt: skip


def chromium() -> str | None:
    """The program, where there is one."""
    named = os.environ.get("SPECPROXY_CHROMIUM")
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab. ``problems``: exceptions of its scripts, errors on its console, requests that its policy refused."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.problems: list[str] = []
        self.requested: list[str] = []
        self._reading = asyncio.create_task(self._read())

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol."""
        number = next(self._numbers)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        await self._socket.send_str(msgspec.json.encode({"id": number, "method": method, "params": params}).decode())
        async with asyncio.timeout(WAIT_S):
            return await answer

    async def begin(self) -> None:
        """Report what goes wrong from now on."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.send(f"{domain}.enable")

    async def look(self, *, width: int = 1280, height: int = 900, dark: bool = False, phone: bool = False) -> None:
        """The size of the window, and what the system prefers."""
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        calm = {"name": "prefers-reduced-motion", "value": "reduce"}
        await self.send("Emulation.setEmulatedMedia", features=[scheme, calm])

    async def open(self, url: str) -> None:
        """Go there."""
        await self.send("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def run(self, script: str) -> Any:
        """The value of a JavaScript expression, promises awaited. Raises AssertionError where it throws."""
        done = await self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in done:
            raise AssertionError(f"{script}: {done['exceptionDetails']}")
        return done["result"].get("value")

    async def until(self, script: str, wait_s: float = WAIT_S) -> None:
        """Wait for an expression to hold."""
        deadline = asyncio.get_running_loop().time() + wait_s
        while not await self.run(f"!!({script})"):
            if asyncio.get_running_loop().time() > deadline:
                raise AssertionError(f"{script} did not hold within {wait_s} s; problems: {self.problems}")
            await asyncio.sleep(0.03)

    async def click(self, selector: str) -> None:
        """Press the mouse in the middle of what is really there: something that covers it fails the test."""
        name = msgspec.json.encode(selector).decode()
        await self.until(f"document.querySelector({name}) && !document.querySelector({name}).disabled")
        x, y, hit = await self.run(
            f"(() => {{ const e = document.querySelector({name}); e.scrollIntoView({{block: 'center'}});"
            " const b = e.getBoundingClientRect(), x = b.x + b.width / 2, y = b.y + b.height / 2;"
            " return [x, y, e.contains(document.elementFromPoint(x, y))]; })()"
        )
        assert hit, f"{selector} is hidden or covered"
        for kind in ("mousePressed", "mouseReleased"):
            await self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def type(self, text: str) -> None:
        """Into whatever has the focus."""
        await self.send("Input.insertText", text=text)

    async def press(self, key: str) -> None:
        """A key, such as Tab or Enter."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27}
        text = {"text": "\r"} if key == "Enter" else {}
        await self.send("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=codes[key], **text)
        await self.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=codes[key])

    async def picture(self, *, whole: bool = True) -> bytes:
        """A PNG of the page."""
        return base64.b64decode((await self.send("Page.captureScreenshot", captureBeyondViewport=whole))["data"])

    async def close(self) -> None:
        """Stop reading."""
        self._reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading

    async def _read(self) -> None:
        async for message in self._socket:
            said = msgspec.json.decode(message.data)
            if waiting := self._waiting.pop(said.get("id", 0), None):
                if "error" in said:
                    waiting.set_exception(AssertionError(said["error"]["message"]))
                else:
                    waiting.set_result(said["result"])
                continue
            self._heard(said.get("method", ""), said.get("params", {}))

    def _heard(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.problems.append(str(params["exceptionDetails"].get("exception", params["exceptionDetails"])))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.problems.append(str(params["args"]))
        elif method == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])


@contextlib.asynccontextmanager
async def browse(program: str) -> AsyncIterator[Page]:
    """A browser with a fresh profile and one empty tab."""
    with tempfile.TemporaryDirectory(prefix="specproxy-browser-", ignore_cleanup_errors=True) as folder:
        with (Path(folder) / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                program, *FLAGS, f"--user-data-dir={folder}", "about:blank", stdout=log, stderr=log, process_group=0
            )
        try:
            port = await _port(Path(folder) / "log", process)
            async with aiohttp.ClientSession() as http:
                async with http.get(f"http://127.0.0.1:{port}/json/list") as response:
                    target = next(item for item in await response.json() if item["type"] == "page")
                async with http.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    page = Page(socket)
                    await page.begin()
                    yield page
                    await page.close()
        finally:
            # The program may be a shell script that starts the browser: all of its group has to go.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def _port(log: Path, process: asyncio.subprocess.Process) -> int:
    """Of the DevTools, as the browser says it. Raises AssertionError where it does not start."""
    deadline = asyncio.get_running_loop().time() + START_S
    while asyncio.get_running_loop().time() < deadline and process.returncode is None:
        if found := re.search(r"DevTools listening on ws://127\.0\.0\.1:(\d+)/", _said(log)):
            return int(found[1])
        await asyncio.sleep(0.03)
    raise AssertionError(f"the browser did not start: {_said(log)[-2000:]}")


def _said(log: Path) -> str:
    return log.read_text(errors="replace")
