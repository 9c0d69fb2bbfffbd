"""A service of one's own for as long as a block runs: for demos, benchmarks and tests.

Example:
    with running_service() as address:  # "127.0.0.1:41783"
        loader = sampler.attach(loader, address, run="demo")
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from sampler_service.errors import Unavailable

POLL_S = 0.05
TAIL_LINES = 30


class RunningService(str):
    """Its text is "host:port" of a service; it knows its process too.

    Attributes:
        page: "http://host:port" of its web page; empty when it has none.
        process: `sampler-service up`; its `pid` is there to be killed.
        log: file with all that it printed; gone with the service.
    """

    page: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self, timeout_s: float = 30.0) -> int:
        """SIGTERM, and the exit code; a process that hangs for longer than `timeout_s` is killed, which is -9."""
        return _stop(self.process, timeout_s)


@contextmanager
def running_service(
    *,
    shards: int = 1,
    port: int = 0,
    page: bool = False,
    timeout_s: float = 120.0,
    stop_s: float = 30.0,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[RunningService]:
    """Run `sampler-service up` in a process of its own and yield its address.

    Args:
        shards: sketch shards per run.
        port: 0 takes a free one.
        page: serve the web page too, on a free port.
        timeout_s: within which it must serve.
        stop_s: within which it must have ended after SIGTERM; then it is killed.
        arguments: further options of `up`, such as ("--address", "auto").
        environment: variables beside those of this process.

    Raises:
        Unavailable: it ended or did not serve in time, or did not end with exit code 0 when the block was
            through; the message has the last lines of its log. One that the block has ended itself may end as it will.
    """
    with tempfile.TemporaryDirectory(prefix="sampler-") as folder:
        ready, log = Path(folder, "ready"), Path(folder, "log")
        command = [sys.executable, "-m", "sampler_service", "up", "--port", str(port), "--shards", str(shards)]
        command += ["--page-port", "0"] if page else ["--no-page"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--ready-file", str(ready), *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(environment or {})},
                start_new_session=True,  # Ctrl-C is for the caller, who then stops this
            )
        try:
            address, page_address = _await_ready(process, ready, log, timeout_s)
            service = RunningService(address)
            service.page, service.process, service.log = page_address, process, log
            yield service
            ended_by_block = process.poll() is not None
            code = _stop(process, stop_s)
            if code and not ended_by_block:
                raise Unavailable(f"the service ended with exit code {code}; its log ends with:\n{_tail(log)}")
        finally:
            _stop(process, stop_s)


def _await_ready(process: subprocess.Popen[bytes], ready: Path, log: Path, timeout_s: float) -> tuple[str, str]:
    """Addresses of the service and of its page."""
    deadline = time.monotonic() + timeout_s
    while not ready.exists():
        code = process.poll()
        if code is not None:
            raise Unavailable(f"the service ended with exit code {code} before it served:\n{_tail(log)}")
        if time.monotonic() > deadline:
            raise Unavailable(f"the service does not serve after {timeout_s:g} s; its log ends with:\n{_tail(log)}")
        time.sleep(POLL_S)
    address, *page = ready.read_text().splitlines()
    return address, page[0] if page else ""


def _stop(process: subprocess.Popen[bytes], timeout_s: float) -> int:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # it leads its session, so this is it and what it started
    return process.wait()


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])
