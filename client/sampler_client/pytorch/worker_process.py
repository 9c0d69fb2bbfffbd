"""The process of a DataLoader's worker that has a stream: it ends when the trainer's does, and not before the training
loop is through with what it sent."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from multiprocessing.connection import wait
from multiprocessing.synchronize import Event
from multiprocessing.util import Finalize

from sampler_client.record_stream import RecordStream

_LOOK_S = 0.05


def keep(stream: RecordStream) -> None:
    """Keep a stream as long as this process may live, and close it then: another process goes on with the next pass.

    The trainer's process may end without a word to this one. torch looks whether the parent is there, but under
    "forkserver" that is the server, which stays as long as its children.
    """
    Finalize(None, _end, args=(stream,), exitpriority=10)  # a worker's process runs no atexit
    trainer = multiprocessing.parent_process()
    if trainer is not None:
        threading.Thread(target=_follow, args=(trainer.sentinel,), name="sampler-trainer", daemon=True).start()


def _follow(trainer: int) -> None:
    wait([trainer])
    os._exit(1)  # the stream breaks with it, and what it holds goes to others: nobody has received it


def _end(stream: RecordStream) -> None:
    # A worker is told to end when its last batches have left it, though they wait in the DataLoader's queue.
    over = _loop_is_over() if stream.is_through else None
    while over is not None and not over.is_set():  # wait() would hang the trainer if this process were killed in it
        time.sleep(_LOOK_S)
    stream.close(returns=True)


def _loop_is_over() -> Event | None:
    """What the DataLoader sets when its iteration ends; it shows it to nobody but its own code in the worker."""
    arguments = getattr(multiprocessing.current_process(), "_args", ())
    return next((argument for argument in arguments if isinstance(argument, Event)), None)
