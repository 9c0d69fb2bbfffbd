"""Runs follow the records of their data sets, whoever changes these and whether or not a trainer asks for any."""

from __future__ import annotations

import logging
import threading

from sampler_service.errors import NotFound
from sampler_service.remarks import Remarks
from sampler_service.rpc.records import Records, follow
from sampler_service.service import Service
from sampler_service.types import Version

log = logging.getLogger(__name__)


class Follower:
    """Looks now and then, in threads of its own, at the records that are held here of data sets that runs are over:
    has what is newer on other nodes brought, and the service told what was appended and deleted. What fails is logged
    and tried again; a data set that takes long keeps no other waiting.

    Args:
        service: whose runs follow.
        records: of this node.
        every_s: seconds between two looks.
    """

    def __init__(self, service: Service, records: Records, every_s: float) -> None:
        self._service = service
        self._records = records
        self._every_s = every_s
        self._told: dict[str, Version] = {}
        self._under_way: set[str] = set()
        self._stopped = threading.Event()
        self._remarks = Remarks(log)
        threading.Thread(target=self._run, name="follow", daemon=True).start()

    def stop(self) -> None:
        """Look no more, and tell the service nothing more; what is being copied is given up with this process."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            try:
                for dataset in self._service.datasets():
                    if dataset not in self._under_way:
                        self._under_way.add(dataset)
                        threading.Thread(target=self._follow, args=(dataset,), name="follow", daemon=True).start()
            except Exception as error:  # whatever it is, the next look comes
                self._remarks.warn("changes of records are not followed for now: %s: %s", type(error).__name__, error)

    def _follow(self, dataset: str) -> None:
        try:
            self._records.version(dataset)
            self._bring(dataset)
            version = self._records.version(dataset)
            if version != self._told.get(dataset) and not self._stopped.is_set():
                follow(self._service, self._records, dataset)
                self._told[dataset] = version
        except NotFound:  # the trainers alone have it, or other nodes
            pass
        except Exception as error:
            self._remarks.warn("changes of dataset %s are not followed for now: %s", dataset, error)
        finally:
            self._under_way.discard(dataset)

    def _bring(self, dataset: str) -> None:
        try:
            self._records.bring(dataset)
        except Exception as error:  # what is held here is followed none the less
            self._remarks.warn("dataset %s stays here as it is: %s", dataset, error)
