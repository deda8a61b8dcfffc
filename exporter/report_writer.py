"""The AcceleratorReport of one node: as it was last written, and how the next word gets into it."""

from __future__ import annotations

import contextlib
import logging
from datetime import datetime
from typing import Protocol

import msgspec

from exporter.report_wire import new_report, read_core, read_report, status_patch, status_update
from health.report import AcceleratorReport, ReportStatus
from health.vocabulary import GROUP_VERSION
from runtime.api_errors import ApiError, Conflict, NotFound
from runtime.kubernetes import Response

REPORTS = f"/apis/{GROUP_VERSION}/acceleratorreports"

_TIMEOUT = (2.0, 5.0)

log = logging.getLogger(__name__)


class ReportApi(Protocol):
    """What is used of `runtime.kubernetes.Session`."""

    def get(self, path: str, *, timeout: tuple[float, float] = ...) -> Response:
        """Read an object."""

    def post(self, path: str, body: bytes, *, timeout: tuple[float, float] = ...) -> Response:
        """Create an object."""

    def put(self, path: str, body: bytes, *, timeout: tuple[float, float] = ...) -> Response:
        """Replace an object, if its resourceVersion is still the body's."""

    def merge_patch(self, path: str, body: bytes, *, timeout: tuple[float, float] = ...) -> Response:
        """Change an object (RFC 7386)."""


class ReportWriter:
    """Requests that are sent once, for one thread. Every method raises ApiError."""

    def __init__(self, api: ReportApi, *, node: str, node_uid: str, sequence: int = 0) -> None:
        self.sequence = sequence
        """Of the last write, or of one that may have been carried out although no answer came."""
        self.written: ReportStatus | None = None
        """What the report says; None where that is not known."""
        self._api = api
        self._path = f"{REPORTS}/{node}"
        self._node = node
        self._node_uid = node_uid
        self._exists = False
        self._version = ""

    def meet(self) -> AcceleratorReport | None:
        """Read the report, and where its sequence stands. None if there is none; without status where its status cannot
        be read, or is that of another node of the same name."""
        try:
            body = self._api.get(self._path, timeout=_TIMEOUT).body
        except NotFound:
            return None
        self._exists = True
        node_uid, sequence = read_core(body)
        self.sequence = max(self.sequence, sequence)
        report = read_report(body) or AcceleratorReport()
        if self._node_uid and node_uid not in ("", self._node_uid):
            log.warning(
                "the report is of another node of this name: it is not taken up", extra={"uid": node_uid}
            )
            report = AcceleratorReport(spec=report.spec)
        return report

    def write(self, wanted: ReportStatus, *, now: datetime) -> AcceleratorReport | None:
        """Make the report say this, with the next sequence number. Returns the report as the API server has it then;
        None where that cannot be read."""
        if not self._exists:
            self._create()
        status = msgspec.structs.replace(wanted, sequence=self.sequence + 1, renew_time=now)
        try:
            answer = self._put(status)
        except ApiError as error:
            self._exists = not isinstance(error, NotFound)
            if error.maybe_applied:
                self.sequence += 1
            if error.maybe_applied or not self._exists:
                self.written = None
            raise
        self.sequence += 1
        self.written = wanted
        report = read_report(answer.body)
        self._version = report.metadata.resource_version if report else ""
        return report

    def _put(self, status: ReportStatus) -> Response:
        """In the place of what we have written last, or over whatever stands there."""
        path, version, self._version = f"{self._path}/status", self._version, ""
        if version:
            body = status_update(self._node, status, resource_version=version)
            with contextlib.suppress(Conflict):  # the controller has written its spec, or somebody a label
                return self._api.put(path, body, timeout=_TIMEOUT)
        return self._api.merge_patch(path, status_patch(status), timeout=_TIMEOUT)

    def _create(self) -> None:
        try:
            self._api.post(REPORTS, new_report(self._node, self._node_uid), timeout=_TIMEOUT)
        except Conflict as error:
            if not error.already_exists:
                raise
        self._exists = True
        self.written = None
