"""A local forward proxy and TLS front for the local servers."""

import asyncio
import contextlib
import shutil
import ssl
import subprocess
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import pytest


class Relay:
    """Forwards the bytes of connections; `seen` holds their request lines."""

    def __init__(self, target: str | None = None, context: ssl.SSLContext | None = None) -> None:
        self.seen: list[str] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._target = urlsplit(target) if target else None
        self._context = context
        self._ready: Future[int] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="relay")

    @property
    def address(self) -> str:
        scheme, name = ("https", "localhost") if self._context else ("http", "127.0.0.1")
        return f"{scheme}://{name}:{self._ready.result(timeout=5)}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.result(timeout=5)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=5)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0, ssl=self._context)
        self._ready.set_result(server.sockets[0].getsockname()[1])
        await self._stop.wait()
        server.close()
        for writer in self._writers:
            with contextlib.suppress(AttributeError):  # of a closed connection over TLS, before Python 3.11.4
                writer.transport.abort()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *(writer.wait_closed() for writer in self._writers), return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            self.seen.append(head.partition("\r\n")[0])
            target = self._target or urlsplit(self.seen[-1].split(" ")[1])
            there, back = await asyncio.open_connection(target.hostname, target.port)
            self._writers |= {writer, back}
            first, rest = head.split("\r\n", 1)
            method, address, version = first.split(" ")
            path = urlsplit(address).path if "://" in address else address
            back.write(f"{method} {path} {version}\r\n{rest}".encode("latin-1"))
            await asyncio.gather(_copy(reader, back), _copy(there, writer))
        writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


def key_pair(folder: Path, name: str, password: str | None = None) -> tuple[Path, Path]:
    """Create a self-signed certificate for localhost; return the paths of certificate and key. Skip without openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    pem, key = folder / f"{name}-cert.pem", folder / f"{name}-key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *(("-nodes",) if password is None else ("-passout", f"pass:{password}")),
            *("-keyout", str(key), "-out", str(pem), "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost"),
        ],
        check=True,
        capture_output=True,
    )
    return pem, key


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """Create a self-signed certificate for localhost; return its path and a server context."""
    pem, key = key_pair(folder, "server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    return pem, context
