"""Standard streams that are closed or whose reader has left, and repeated interrupts."""

import os
import signal
import subprocess
import sys

import pytest
from support.inputs import MODEL, lines

from embedkit_core.cli.console import FAILED, INTERRUPTED, REFUSED

EMBED = [sys.executable, "-m", "embedkit_core", "embed", "in.txt", "-o", "out.npy", "-m", MODEL]


def without_streams(command, folder, *closed):
    """Run a command with some of the file descriptors 0, 1 and 2 closed."""
    redirects = " ".join(f"{descriptor}>&-" for descriptor in closed)
    program = ["bash", "-c", f'exec "$@" {redirects}', "bash", *command]
    return subprocess.run(program, cwd=folder, capture_output=True, text=True, timeout=60)


def test_without_standard_input_a_confirmation_is_refused(server, tmp_path):
    lines(tmp_path / "in.txt", ["one"])
    done = without_streams(EMBED, tmp_path, 0)
    assert (done.returncode, server.requests) == (REFUSED, [])
    assert done.stderr.endswith("Add --yes to proceed.\n")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_a_command_works_without_output_streams(server, tmp_path, closed):
    lines(tmp_path / "in.txt", ["one"])
    done = without_streams([*EMBED, "--yes"], tmp_path, *closed)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.npy").is_file()


def test_a_reader_that_has_left_ends_a_command_without_a_message(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "embedkit_core", "models"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, cwd=tmp_path, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (FAILED, b"")


def test_a_second_interrupt_ends_the_wait_for_requests_without_a_traceback(server, tmp_path):
    lines(tmp_path / "in.txt", [f"text {i}" for i in range(3000)])
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program += "from embedkit_core.cli import main; main()"
    command = [sys.executable, "-c", program, *EMBED[3:], "--yes", "--quiet"]
    server.hold()
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    server.wait_for_requests(1, timeout=60)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("rag-embedkit: stopped.")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    server.release()
    assert (process.returncode in (-signal.SIGINT, INTERRUPTED), err) == (True, "")
