"""Hosts on one machine, each with a network, processes, a name and a /tmp/ray of its own, and a cable to one switch.

A host is a set of Linux namespaces, held by a process that waits for the end of its input. When this process ends,
however it does, the kernel takes the hosts with it, and what runs on them and their cables. Outside nothing changes:
the switch is a namespace too, and the addresses exist in there alone.

    with Hosts() as hosts:
        head = hosts.add("head")
        hosts.run("head", ["ip", "address"])
        hosts.cut("head")
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from tests.cluster.support import title

NETWORK = "10.77.0"
SWITCH = "switch"
START_S = 10.0
"""within which a host must be there, and each command that sets it up must end"""

# Children of others that end up here are none of its business: the kernel is to forget them.
HOLD = "import signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); print('up', flush=True); sys.stdin.read()"

RELAY = Path(__file__).with_name("relay.py")


class NotPossible(Exception):
    """This machine has no namespaces for us; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One host."""

    name: str
    address: str
    holder: subprocess.Popen[bytes]
    pid: int
    """of the process that holds its namespaces, as seen from outside"""


class Hosts:
    """Hosts on one switch. Everything is gone when the block ends.

    Raises:
        NotPossible: on entry.
    """

    def __init__(self) -> None:
        self._hosts: dict[str, Host] = {}
        self._relays: dict[str, subprocess.Popen[bytes]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Hosts:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="hosts-")))
        self._names, self._resolver = folder / "hosts", folder / "resolv.conf"
        self._names.write_text("127.0.0.1 localhost\n")
        self._resolver.write_text("")
        try:
            self._hosts[SWITCH] = self._hold(SWITCH, f"{NETWORK}.254")
            self._inside(SWITCH, "ip link add hub type bridge; ip link set hub up; ip link set lo up")
            self._inside(SWITCH, f"ip address add {NETWORK}.254/24 dev hub")
        except (OSError, subprocess.SubprocessError) as error:
            self.__exit__()
            raise NotPossible(f"no namespaces here: {_words(error)}") from error
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._relays):
            self._end_relay(name)
        for host in reversed(self._hosts.values()):
            assert host.holder.stdin is not None and host.holder.stdout is not None
            host.holder.stdin.close()
            host.holder.stdout.close()
            host.holder.wait(START_S)
        self._relays, self._hosts = {}, {}
        self._stack.close()

    def add(self, name: str) -> Host:
        """A further host, with a cable to the switch."""
        address = f"{NETWORK}.{len(self._hosts)}"
        with self._names.open("a") as names:
            names.write(f"{address} {name}\n")
        self._hosts[name] = host = self._hold(name, address)
        switch, port = self._hosts[SWITCH].pid, _port(name)
        _check(
            ["ip", "link", "add", port, "netns", str(switch), "type", "veth", "peer", "eth0", "netns", str(host.pid)]
        )
        self._inside(SWITCH, f"ip link set {port} master hub; ip link set {port} up")
        self._inside(
            name,
            f"""
            hostname {name}
            ip link set lo up; ip link set eth0 up
            ip address add {address}/24 dev eth0
            ip route add default via {NETWORK}.254
            mount --bind {self._names} /etc/hosts; mount --bind {self._resolver} /etc/resolv.conf
            mkdir -p /tmp/ray; mount -t tmpfs tmpfs /tmp/ray
            """,
        )
        return host

    def __getitem__(self, name: str) -> Host:
        return self._hosts[name]

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        output: IO[bytes] | int | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a command on a host, in this process's working directory. It ends with the host."""
        return subprocess.Popen(
            [*_enter(self._hosts[name]), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output is not None else None,
            env={**os.environ, **(environment or {})},
        )

    def run(
        self, name: str, command: Sequence[str], *, timeout_s: float, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host to its end; the exit code is for the caller to judge."""
        return subprocess.run(
            [*_enter(self._hosts[name]), *command],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={**os.environ, **(environment or {})},
            check=False,
        )

    def processes(self, name: str, begins: str) -> list[psutil.Process]:
        """Processes of a host whose command line begins so."""
        inside = os.readlink(f"/proc/{self._hosts[name].pid}/ns/pid")
        found = []
        for process in psutil.process_iter():
            try:
                if os.readlink(f"/proc/{process.pid}/ns/pid") == inside and title(process).startswith(begins):
                    found.append(process)
            except (OSError, psutil.Error):  # it ended meanwhile
                continue
        return found

    def signal(self, process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        """Send a signal to what was started: what nsenter gets itself it does not pass on."""
        for child in psutil.Process(process.pid).children():
            child.send_signal(number)

    def cut(self, name: str) -> None:
        """Take a host's link down."""
        self._inside(SWITCH, f"ip link set {_port(name)} down")

    def restore(self, name: str) -> None:
        """Take it up again."""
        self._inside(SWITCH, f"ip link set {_port(name)} up")

    def weather(self, name: str, delay_s: float, loss: float) -> str:
        """Have a host's cable delay frames in both directions and lose a share of them; returns what does it."""
        port, far = _port(name), _port(name, "far")
        netem = f"root netem delay {delay_s * 1e3:g}ms loss {loss * 100:g}%"
        try:
            self._inside(SWITCH, f"tc qdisc replace dev {port} {netem}")
            self._inside(name, f"tc qdisc replace dev eth0 {netem}")
            return "netem"
        except subprocess.SubprocessError:  # a kernel without it, or a machine without tc
            near = _port(name, "near")
        self._inside(name, f"{sys.executable} {RELAY} plain eth0")
        self._inside(
            SWITCH,
            f"""
            ip link set {port} nomaster
            ip link add {near} type veth peer {far}
            {sys.executable} {RELAY} plain {near}
            ip link set {near} up; ip link set {far} up; ip link set {near} master hub
            """,
        )
        command = [sys.executable, str(RELAY), "between", port, far, str(delay_s), str(loss)]
        self._relays[name] = self.start(SWITCH, command)
        return "relay"

    def clear(self, name: str) -> None:
        """End the bad weather."""
        if name not in self._relays:
            self._inside(SWITCH, f"tc qdisc del dev {_port(name)} root")
            self._inside(name, "tc qdisc del dev eth0 root")
            return
        self._end_relay(name)
        self._inside(SWITCH, f"ip link del {_port(name, 'near')}; ip link set {_port(name)} master hub")

    def _end_relay(self, name: str) -> None:
        relay = self._relays.pop(name)
        self.signal(relay, signal.SIGKILL)
        relay.wait(START_S)

    def _hold(self, name: str, address: str) -> Host:
        apart = ["--net", "--pid", "--mount", "--uts", "--fork", "--kill-child", "--mount-proc"]
        command = ["unshare", *apart, sys.executable, "-c", HOLD]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        holder = subprocess.Popen(command, **pipes)
        assert holder.stdin is not None and holder.stdout is not None
        ready, _, _ = select.select([holder.stdout], [], [], START_S)
        said = holder.stdout.readline().decode().strip() if ready else f"nothing within {START_S:g} s"
        if said != "up":
            holder.stdin.close()
            holder.stdout.close()
            holder.kill()
            holder.wait(START_S)
            raise OSError(f"unshare: {said}")
        (child,) = psutil.Process(holder.pid).children()
        return Host(name=name, address=address, holder=holder, pid=child.pid)

    def _inside(self, name: str, script: str) -> None:
        _check([*_enter(self._hosts[name]), "sh", "-ec", script])


def why_not() -> str:
    """Why there can be no hosts on this machine; empty when there can."""
    try:
        with Hosts() as hosts:
            hosts.add("probe")
    except (NotPossible, OSError, subprocess.SubprocessError) as error:
        return _words(error)
    return ""


def _enter(host: Host) -> list[str]:
    # env: entering a mount namespace leaves one at its root.
    into = ["nsenter", "--target", str(host.pid), "--net", "--pid", "--mount", "--uts"]
    return [*into, "env", "-C", str(Path.cwd())]


def _check(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=START_S)


def _port(name: str, end: str = "to") -> str:
    """Name of an interface of the switch; it can't be longer than 15 characters."""
    return f"{end}-{name}"[:15]


def _words(error: Exception) -> str:
    """What an error or a failed command says, in one line."""
    said = error.stderr if isinstance(error, subprocess.CalledProcessError) else b""
    return " ".join(f"{error} {(said or b'').decode(errors='replace')}".split())
