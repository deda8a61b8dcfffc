"""The door for who makes things go wrong from outside: /sickbay-admin/faults.

GET lists the armed faults, POST arms one (JSON as in `faults.Fault`, or a list of them), DELETE disarms all, or with
/NUMBER one.

    curl -d '{"kind": "TooManyRequests", "resource": "pods/eviction", "count": 3}' URL/sickbay-admin/faults
"""

from __future__ import annotations

import msgspec

from simulation.cluster.faults import FaultError, Faults, parse
from simulation.cluster.requests import Request
from simulation.cluster.wire import Answer

PATH = "/sickbay-admin/faults"


def answer(faults: Faults, request: Request) -> Answer:
    """Carry the request out."""
    number = request.path[len(PATH) :].strip("/")
    if request.method == "GET" and not number:
        return _json(200, {"faults": faults.describe()})
    if request.method == "POST" and not number:
        return _armed(faults, request.body)
    if request.method == "DELETE" and not number:
        faults.clear()
        return _json(200, {"faults": []})
    if request.method == "DELETE" and number.isascii() and number.isdigit():
        if faults.remove(int(number)):
            return _json(200, {"faults": faults.describe()})
        return _json(404, {"error": f"no fault has number {number}"})
    return _json(405, {"error": f"GET, POST and DELETE {PATH}, and DELETE {PATH}/NUMBER are what there is"})


def _armed(faults: Faults, body: bytes) -> Answer:
    try:
        many = body.lstrip().startswith(b"[")
        parts = msgspec.json.decode(body, type=list[msgspec.Raw]) if many else [msgspec.Raw(body)]
        numbers = [faults.add(fault) for fault in [parse(bytes(part)) for part in parts]]
    except (FaultError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        return _json(400, {"error": str(error)})
    return _json(200, {"numbers": numbers})


def _json(status: int, document: object) -> Answer:
    return Answer(status, msgspec.json.encode(document) + b"\n")
