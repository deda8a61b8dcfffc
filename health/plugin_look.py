"""What one look at device plugins and the kubelet shows: for each thing that may be wrong, whether it is so. Pure.

The answer is None where it cannot be told. IDs of the kubelet are devices of ours where they are their UUIDs; on a
node whose devices are divided (MIG), a device may be missing among them and nothing be wrong.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from health.accelerators import is_accelerator, uuid_of
from health.vocabulary import FaultKind

DEFAULT_RESOURCE = "nvidia.com/gpu"

TIME_SLACK = 1.0
"""Times of pods have whole seconds: a failure may be said to be so much older than it is."""


class PluginSeen(Protocol):
    """What a probe finds of one plugin; `state` is Serving, SocketLost, Hung, Dead or Unknown.

    `Unknown` without its socket file present is a plugin that this probe has never seen.
    """

    @property
    def resource(self) -> str: ...
    @property
    def socket(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def present(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Look:
    """All that is known at one moment.

    `plugins` is None while the probe does not work, `healthy` (device IDs by resource, as the kubelet has them)
    while the kubelet does not answer: no data is not a fault. `devices` are the UUIDs of all devices, `sound` of
    those that are healthy and have no fault, `bad` of those with a Fatal one, `drills` of those that are bad by a
    drill; of all others nothing is said. `held` are the resources of which pods hold devices. `failed` has, by
    resource, when (monotonic seconds) an allocation last failed.
    """

    plugins: tuple[PluginSeen, ...] | None
    healthy: Mapping[str, Collection[str]] | None
    devices: frozenset[str] = frozenset()
    sound: frozenset[str] = frozenset()
    bad: frozenset[str] = frozenset()
    drills: frozenset[str] = frozenset()
    held: frozenset[str] = frozenset()
    failed: Mapping[str, float] = field(default_factory=dict)

    @property
    def ours(self) -> frozenset[str]:
        """The UUIDs of all devices."""
        return self.devices | self.sound | self.bad


class Subject(NamedTuple):
    """What may be wrong: a kind of fault with a device, or with the plugin of a resource."""

    kind: str
    device_uuid: str
    resource: str


class _Plugin(NamedTuple):
    state: str
    socket: str
    present: bool
    """Its socket file is there."""

    @property
    def gone(self) -> bool:
        return self.state == "Dead" or (self.state == "Unknown" and not self.present)

    @property
    def doubtful(self) -> bool:
        """Something is there of which nothing can be told."""
        return self.state == "Unknown" and self.present


_NEVER_SEEN = _Plugin("Unknown", "", present=False)
_BEST_FIRST = ("Serving", "SocketLost", "Hung", "Dead", "Unknown")


@dataclass(frozen=True, slots=True)
class View:
    """A look together with what was seen before.

    `known` are the resources that have, or had, a plugin, `current` those of them that were not given up; `lost`
    says since when (monotonic seconds) a plugin has served without its socket file, `raised` what is a fault
    already, `offered` which devices of ours the kubelet has as healthy. `divided` means that a device which is not
    offered may be offered in parts.
    """

    look: Look
    plugins: Mapping[str, _Plugin]
    known: frozenset[str]
    current: frozenset[str]
    lost: Mapping[str, float]
    raised: frozenset[Subject]
    offered: frozenset[str]
    divided: bool
    resource_of_devices: str

    @classmethod
    def of(
        cls,
        look: Look,
        *,
        known: frozenset[str],
        lost: Mapping[str, float],
        raised: frozenset[Subject],
        now: float,
    ) -> View:
        """The view of this look at `now`, after what was known before."""
        healthy = {
            name: ids for name, ids in (look.healthy or {}).items() if _accelerates(name, ids, look.ours)
        }
        seen = _by_resource(look, healthy)
        present = {name for name, plugin in seen.items() if plugin != _NEVER_SEEN}
        held = {name for name in look.held if _accelerates(name, (), frozenset())}
        known = known | present | {name for name, ids in healthy.items() if ids} | held
        plugins = {
            name: _believed(name, seen.get(name, _NEVER_SEEN), look, raised) for name in known | seen.keys()
        }
        if look.plugins is not None:
            lost = {
                name: lost.get(name, now) for name, plugin in plugins.items() if plugin.state == "SocketLost"
            }
        uuids = {uuid_of(one) for ids in healthy.values() for one in ids}
        owners = sorted(name for name, ids in healthy.items() if _owns(ids, look.ours))
        current = frozenset(name for name in known if healthy.get(name) or not _given_up(name, plugins))
        return cls(
            look=look,
            plugins=plugins,
            known=known,
            current=current,
            lost=lost,
            raised=raised,
            offered=frozenset(uuids & look.ours),
            divided=bool(uuids - look.ours) or any("/mig-" in name for name in current),
            resource_of_devices=owners[0] if owners else DEFAULT_RESOURCE,
        )

    @property
    def serving(self) -> bool:
        """Whether the plugins of our devices, as far as there are any, all serve."""
        states = [self.plugins[name].state for name in self.current]
        return bool(states) and all(state == "Serving" for state in states)


def holds(subject: Subject, view: View) -> bool | None:
    """Whether this is wrong; None where the look cannot tell."""
    if subject.kind == FaultKind.DEVICE_OFFERED_THOUGH_BAD:
        known = view.look.healthy is not None
        return (subject.device_uuid in view.offered & view.look.bad) if known else None
    if view.look.plugins is None:
        return None
    if subject.kind == FaultKind.DEVICE_NOT_OFFERED:
        return _not_offered(subject.device_uuid, view)
    plugin = view.plugins.get(subject.resource)
    if plugin is None:
        return False
    return None if plugin.doubtful else _of_plugin(subject, plugin, view)


def told(subject: Subject, view: View) -> str:
    """What is wrong, for people."""
    plugin = view.plugins.get(subject.resource, _NEVER_SEEN)
    name, socket = subject.resource, plugin.socket or "its socket"
    match subject.kind:
        case FaultKind.PLUGIN_DEAD:
            return f"{name}: nobody serves {socket}"
        case FaultKind.PLUGIN_HUNG:
            return f"{name}: the plugin at {socket} does not answer"
        case FaultKind.PLUGIN_SOCKET_LOST:
            return f"{name}: the plugin serves, but {socket} is gone: it is not found after a kubelet restart"
        case FaultKind.PLUGIN_WEDGED if plugin.gone:
            return f"{name}: the kubelet has devices as healthy that nobody serves at {socket}"
        case FaultKind.PLUGIN_WEDGED:
            return f"{name}: {socket} is gone, and an allocation has failed since"
        case FaultKind.DEVICE_OFFERED_THOUGH_BAD:
            return "the device has a Fatal fault, and the kubelet has it as healthy"
        case _ if subject.device_uuid:
            return "the device is healthy, and the kubelet has others of its plugin's, but not this one"
        case _:
            return f"{view.resource_of_devices}: the plugin serves, and the kubelet has none of our healthy devices"


def _of_plugin(subject: Subject, plugin: _Plugin, view: View) -> bool | None:
    name, look = subject.resource, view.look
    offered = None if look.healthy is None else bool(look.healthy.get(name))
    failed = name in view.lost and look.failed.get(name, float("-inf")) >= view.lost[name] - TIME_SLACK
    match subject.kind:
        case FaultKind.PLUGIN_HUNG:
            return plugin.state == "Hung"
        case FaultKind.PLUGIN_SOCKET_LOST:
            # After a start of the probe one that serves without its file looks like one that was never there.
            blind = offered is None and plugin.state == "Unknown"
            return None if blind else plugin.state == "SocketLost" and not failed
        case FaultKind.PLUGIN_WEDGED:
            return offered if plugin.gone else plugin.state == "SocketLost" and failed
        case _:
            return _dead(subject, plugin, offered, view)


def _dead(subject: Subject, plugin: _Plugin, offered: bool | None, view: View) -> bool | None:
    if not plugin.gone or _given_up(subject.resource, view.plugins):
        return False
    if offered is not None:
        # The resource is known, so there was a plugin, even if it was gone when the probe began.
        return not offered
    wedged = Subject(FaultKind.PLUGIN_WEDGED, "", subject.resource) in view.raised
    return True if plugin.state == "Dead" and not wedged else None


def _given_up(resource: str, plugins: Mapping[str, _Plugin]) -> bool:
    """Whether nobody serves it, its socket file is gone, and the vendor's plugin serves other resources: then that
    is on purpose, as after a change of the MIG profiles."""
    vendor = resource.partition("/")[0]
    return (
        plugins[resource].gone
        and not plugins[resource].present
        and any(
            name.partition("/")[0] == vendor and plugin.state == "Serving" for name, plugin in plugins.items()
        )
    )


def _not_offered(uuid: str, view: View) -> bool | None:
    look = view.look
    if look.healthy is None:
        return None
    if not uuid:
        if view.offered or view.divided:
            return False
        return True if look.sound and view.serving else None
    if uuid in view.offered or uuid in look.bad or (look.devices and uuid not in look.devices):
        return False
    decidable = view.serving and view.offered and not view.divided and uuid in look.sound
    return True if decidable else None


def _by_resource(look: Look, healthy: Mapping[str, Collection[str]]) -> Mapping[str, _Plugin]:
    found: dict[str, _Plugin] = {}
    for plugin in sorted(look.plugins or (), key=_rank, reverse=True):
        if _accelerates(plugin.resource, healthy.get(plugin.resource, ()), look.ours):
            seen = _Plugin(str(plugin.state), plugin.socket, plugin.present)
            found[plugin.resource] = _NEVER_SEEN if seen[0::2] == _NEVER_SEEN[0::2] else seen
    return found


def _rank(plugin: PluginSeen) -> int:
    return _BEST_FIRST.index(plugin.state) if plugin.state in _BEST_FIRST else len(_BEST_FIRST)


def _believed(name: str, plugin: _Plugin, look: Look, raised: frozenset[Subject]) -> _Plugin:
    """A plugin whose socket was lost under an earlier probe is still that, as long as the kubelet has its devices."""
    lost = Subject(FaultKind.PLUGIN_SOCKET_LOST, "", name) in raised
    if plugin == _NEVER_SEEN and lost and (look.healthy or {}).get(name):
        return plugin._replace(state="SocketLost")
    return plugin


def _accelerates(resource: str, ids: Collection[str], ours: frozenset[str]) -> bool:
    """The end of a network's plugin is no reason to work on a node's GPUs."""
    return is_accelerator(resource) or _owns(ids, ours)


def _owns(ids: Collection[str], ours: frozenset[str]) -> bool:
    return any(uuid_of(one) in ours for one in ids)
