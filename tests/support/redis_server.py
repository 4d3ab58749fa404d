"""A real Redis server on a free port of the loopback interface, which tests stop, kill and suspend."""

import contextlib
import shutil
import socket
import subprocess
import time
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM, Signals

import redis

PROGRAM = "redis-server"
MISSING = f"{PROGRAM} is not installed; on Debian: apt-get install redis-server"
START_SECONDS = 30.0


def is_installed() -> bool:
    return shutil.which(PROGRAM) is not None


class RedisServer:
    """A server with an empty data set, without persistence unless the settings say otherwise.

    Attributes:
        port: Its port, which it keeps over a restart.
        address: redis://127.0.0.1:port/0
    """

    def __init__(self, folder: Path, *settings: str) -> None:
        """Start a server.

        Args:
            folder: Its working directory.
            settings: Options of the command line, such as "--maxmemory 10mb".
        """
        self.folder = folder
        self.settings = settings
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def address(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, *more: str) -> None:
        """Start the process and wait until it answers without TLS."""
        command = [PROGRAM, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--loglevel", "warning"]
        command += " ".join((*self.settings, *more)).split()
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        until = time.monotonic() + START_SECONDS
        while not self._accepts():
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError((self.folder / "redis.log").read_text())
            time.sleep(0.01)

    def _accepts(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return bool(connection.recv(100))
        except OSError:
            return False

    def client(self, **settings) -> redis.Redis:
        """Return a client of the tests, with the library's defaults."""
        return redis.Redis("127.0.0.1", self.port, **settings)

    def signal(self, number: Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def suspend(self) -> None:
        """Let it hang: connections are accepted by the system, and nothing is answered."""
        self.signal(SIGSTOP)

    def resume(self) -> None:
        self.signal(SIGCONT)

    def kill(self) -> None:
        self._end(SIGKILL)

    def stop(self) -> None:
        self._end(SIGTERM)

    def _end(self, number: Signals) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.signal(number)
                self.resume()
            self.process.wait(30)
            self.process = None


def free_port() -> int:
    """Return a port of the loopback interface that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
