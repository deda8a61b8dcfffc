"""A Lease in memory, with resourceVersions, that carries out what an election asks."""

from dataclasses import replace

from remediation.election import Action, LeaseRecord, Request
from runtime.api_errors import Conflict, NotFound


class FakeLease:
    """One Lease with resourceVersions, as etcd would keep it."""

    def __init__(self) -> None:
        self.record: LeaseRecord | None = None
        self.version = 0
        self.writes = 0
        self.trouble: Exception | None = None

    def carry_out(self, request: Request) -> LeaseRecord | None:
        if self.trouble is not None:
            raise self.trouble
        if request.action is Action.READ:
            return self.record
        assert request.record is not None
        if request.action is Action.CREATE:
            if self.record is not None:
                raise Conflict("it exists", status=409, reason="AlreadyExists")
            return self.put(request.record)
        if self.record is None:
            raise NotFound("no such Lease", status=404)
        if self.record.resource_version != request.record.resource_version:
            raise Conflict("modified", status=409, reason="Conflict")
        return self.put(request.record)

    def put(self, record: LeaseRecord) -> LeaseRecord:
        self.version += 1
        self.writes += 1
        self.record = replace(record, resource_version=str(self.version))
        return self.record

    # The same as a LeaseApi.

    def read(self, *, timeout: float) -> LeaseRecord | None:
        return self.carry_out(Request(Action.READ, 0))

    def create(self, record: LeaseRecord, *, timeout: float) -> LeaseRecord:
        return self._written(Request(Action.CREATE, 0, record))

    def replace(self, record: LeaseRecord, *, timeout: float) -> LeaseRecord:
        return self._written(Request(Action.REPLACE, 0, record))

    def _written(self, request: Request) -> LeaseRecord:
        record = self.carry_out(request)
        assert record is not None
        return record
