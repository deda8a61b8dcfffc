"""A real Prometheus scrapes agents and a controller through a bad day: every query and every rule gives data of it."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from msgspec.structs import replace

from simulation.machine import Machine, update
from simulation.plugin_control import change_control
from tests.cannot_run import cannot_run
from tests.lab import images, manifests
from tests.lab.api import Object
from tests.lab.conftest import PROBLEMS, clean
from tests.lab.gpu_node import GPU, TICK, GpuNode, registrations
from tests.lab.images import PROJECT
from tests.lab.lab import Lab
from tests.lab.node import Node
from tests.lab.processes import wait_until
from tests.lab.prometheus import Alertmanager, Prometheus, missing_programs, promtool
from tests.lab.rig import Rig
from tests.otlp_receiver import Mode, OtlpReceiver

pytestmark = pytest.mark.timeout(300)

NODE, BLIND = "watched", "blind"
RULES = sorted((PROJECT / "alerts").glob("*.rules.yaml"))
TESTS = sorted((PROJECT / "alerts" / "tests").glob("*.test.yaml"))
DASHBOARDS = sorted((PROJECT / "dashboards").glob("*.json"))
SXID = "nvidia-nvswitch1: SXid (PCI:0000:00:08.0): 11004, Non-fatal, Link 36 ingress invalid ACL"
KUBELET_COUNT = "accelerator_kubelet_allocation_duration_seconds_count"
SHORTER = ("> 5400", "> 1")
"""A day of this test has no ninety minutes in which a remediation is stuck."""
VARIABLES = {
    "$cluster": ".*",
    "$node": NODE,
    "$__rate_interval": "30s",
    "$__range": "10m",
    "$__interval": "5s",
}


@pytest.fixture(scope="module", autouse=True)
def prometheus_programs(pytestconfig: pytest.Config) -> None:
    """Skip where the programs are missing; with CI=true that is a failure."""
    missing = missing_programs()
    if not missing:
        return
    reason = f"not installed: {', '.join(missing)} (Debian: prometheus prometheus-alertmanager)"
    pytestconfig.stash[PROBLEMS] = [*pytestconfig.stash.get(PROBLEMS, []), f"{Path(__file__).name}: {reason}"]
    cannot_run(reason)


class BadDay:
    """One node with a plugin, an agent and a controller; one whose agent is blind and alone; one that is silent."""

    def __init__(self, gpus: GpuNode, blind: Node, receiver: OtlpReceiver, folder: Path) -> None:
        lab = gpus.lab
        self.gpus, self._blind, self._folder = gpus, blind, folder
        self.alertmanager = Alertmanager(lab, folder, _alertmanager_configuration(folder))
        self.prometheus = Prometheus(lab, folder, rules=RULES, alertmanager=self.alertmanager.address)
        self._silent = f"127.0.0.1:{lab.port()}"
        self.rig = Rig(
            lab,
            environment={
                "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                "OTEL_BSP_SCHEDULE_DELAY": "200",
                # So that spans are dropped soon: to be given up takes them two minutes.
                "OTEL_BSP_MAX_QUEUE_SIZE": "4",
            },
        )
        self._controllers: dict[str, int] = {}

    def live(self) -> None:
        """All of it, one after the other; each trouble lasts until Prometheus has seen it."""
        self._agents()
        self._pods()
        self._plugin_troubles()
        self._controller()
        self._remediation()
        self._failover()

    def await_seen(self, expr: str, deadline: float = 20) -> None:
        """Until Prometheus has a sample of it."""
        wait_until(lambda: self.prometheus.now(expr), deadline, expr, logs=self.rig.logs)

    def _scrape(self) -> None:
        agents = {name: f"127.0.0.1:{agent.port}" for name, agent in self.rig.agents.items()}
        everybody = {**agents, "silent": self._silent}
        self.prometheus.scrape(
            *({"__address__": at, "job": "sickbay-agent", "node": name} for name, at in everybody.items()),
            *(
                {"__address__": f"127.0.0.1:{port}", "job": "sickbay-controller", "pod": name}
                for name, port in self._controllers.items()
            ),
        )

    def _agents(self) -> None:
        update(self.gpus.machine, _worn)
        self.gpus.serve()
        self._start_agent()
        self._start_blind_agent()
        self._scrape()
        self.await_seen('sickbay_source_state{node="blind", source="nvml", state="Failed"} == 1')
        self.await_seen('sickbay_report_failures_total{node="blind"} > 1')
        self.await_seen('accelerator_plugin_state{state="Serving"} == 1')

    def _start_blind_agent(self) -> None:
        """Its worker does not start, and where its API server should be nobody listens."""
        lab = self.gpus.lab
        good = lab.service_account_kubeconfig(*manifests.AGENT, bound_node=BLIND).read_text()
        kubeconfig = self._folder / "nowhere.kubeconfig"
        kubeconfig.write_text(good.replace(lab.server, f"https://{self._silent}"))
        self.rig.start_agent(self._blind, "--kubeconfig", str(kubeconfig), "--worker-command", "false")

    def _start_agent(self) -> None:
        self.rig.start_agent(self.gpus.node, machine=self.gpus.machine)

    def _restart_agent(self) -> None:
        """Also because it asks for the kubelet's own figures as it starts, and then only every 30 s."""
        before = self._shown(KUBELET_COUNT)
        self.rig.agents[NODE].child.stop()
        self._start_agent()
        wait_until(
            lambda: (
                self._shown("sickbay_source_state", source="pods", state="Live") == 1
                and self._shown(KUBELET_COUNT) > before
            ),
            20,
            "the agent to see pods and the kubelet's figures",
            logs=self.rig.logs,
            ignoring=(OSError,),
        )

    def _shown(self, name: str, **labels: str) -> float:
        return self.rig.metric(name, port=self.rig.agents[NODE].port, **labels)

    def _pods(self) -> None:
        """The first pod gives birth to the histograms, the second is seen to be counted."""
        for name in ("first", "second"):
            self._run(name)
        self._restart_agent()
        self._run("third")
        self._restart_agent()
        why = "no MPS daemon"
        change_control(self.gpus.control, lambda now: replace(now, allocate_error=why))
        log = self.gpus.lab.processes.children["plugin"].log
        wait_until(lambda: why in log.read_text(), 5, "the plugin to read it", logs=[log])
        self.gpus.reject_pod("refused")
        change_control(self.gpus.control, lambda now: replace(now, allocate_error=""))
        self.await_seen("accelerator_allocation_failures_total > 0")

    def _run(self, name: str) -> None:
        self.gpus.run_pod(name, 1)
        self.await_seen(f'accelerator_allocation_info{{workload_pod="{name}"}}')
        self.await_seen('accelerator_dispatch_stage_duration_seconds_count{stage="total"} > 0')

    def _plugin_troubles(self) -> None:
        """Hung, dead, and at last wedged: two instances on one socket, and the first ends."""
        plugin = self.gpus.lab.processes.children["plugin"]
        os.kill(plugin.pid, signal.SIGSTOP)
        self._await_fault("PluginHung")
        os.kill(plugin.pid, signal.SIGCONT)
        plugin.kill()
        self._await_fault("PluginDead")
        plugin = self.gpus.serve()
        self.await_seen('accelerator_plugin_state{state="Serving"} == 1')
        second = self.gpus.start_plugin("plugin-2")
        refusal = "device plugin already connected"
        wait_until(lambda: refusal in second.log.read_text(), 10, "a refusal", logs=[second.log])
        plugin.stop()
        self._await_fault("PluginWedged")
        self.gpus.node.kill_kubelet()
        wait_until(lambda: registrations(second.log), 10, "the second to be taken", logs=[second.log])
        wait_until(
            lambda: not self.prometheus.now("accelerator_fault_active"), 40, "the end of all plugin faults"
        )

    def _await_fault(self, kind: str) -> None:
        self.await_seen(f'accelerator_fault_active{{kind="{kind}"}}')

    def _controller(self, name: str = "controller") -> None:
        self.rig.start_controller(name=name)
        self._controllers[name] = self.rig.controller_port
        self._scrape()
        self.await_seen('sickbay_nodes{state="healthy"} == 1', 40)

    def _remediation(self) -> None:
        """A lost GPU; a PodDisruptionBudget holds up the drain until it has been seen."""
        for name in ("first", "second", "third", "refused"):
            self.gpus.delete_pod(name)
        self.gpus.lab.apply(*_guarded(self.gpus.namespace))
        self.await_seen('accelerator_allocation_info{workload_pod=~"guarded-.*"}', 30)
        self.rig.kernel_says(NODE, SXID)
        self.rig.lose_gpu(NODE)
        self.await_seen('sickbay_sessions{phase="Draining"} > 0', 40)
        budget = f"/apis/policy/v1/namespaces/{self.gpus.namespace}/poddisruptionbudgets/guarded"
        self.gpus.lab.api.delete(budget)
        self.await_seen('sickbay_sessions{phase="Held"} > 0', 60)
        self.await_seen('sickbay_nodes{state="held"} > 0')
        self.await_seen("increase(accelerator_xid_errors_total[1m]) > 0")
        self.await_seen('increase(sickbay_spans_total{result=~"failed|dropped"}[5m]) > 0')

    def _failover(self) -> None:
        """Until the successor has waited out the lease nobody leads."""
        assert self.rig.controller is not None
        leader = self.rig.controller
        self.rig.start_controller(name="successor")
        self._controllers["successor"] = self.rig.controller_port
        self._scrape()
        self.await_seen('sickbay_leader_epoch{pod="successor"} == 0')
        leader.kill()
        self.await_seen("max(sickbay_leader_epoch) == 0")
        self.await_seen('sickbay_leader_epoch{pod="successor"} > 1')


def _worn(machine: Machine) -> Machine:
    """Memory that has had errors, and rows remapped."""
    first, *rest = machine.devices
    worn = replace(
        first,
        ecc_volatile_corrected=3,
        ecc_aggregate_corrected=7,
        remapped_rows_corrected=1,
        pcie_replays=2,
        sm_clock_hertz=1.2e9,
    )
    return replace(machine, devices=(worn, *rest))


def _guarded(namespace: str) -> tuple[Object, Object]:
    """A Deployment of one GPU pod, and a budget that lets nobody evict it."""
    labels = {"app": "guarded"}
    container = images.container("main", ["sleep", "infinity"])
    container["resources"] = {"limits": {GPU: 1}}
    spec = images.pod_spec([container], nodeSelector={"kubernetes.io/hostname": NODE})
    metadata = {"name": "guarded", "namespace": namespace}
    selector = {"matchLabels": labels}
    return (
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {"selector": selector, "template": {"metadata": {"labels": labels}, "spec": spec}},
        },
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": metadata,
            "spec": {"minAvailable": 1, "selector": selector},
        },
    )


def _alertmanager_configuration(folder: Path) -> Path:
    """The example, whose receivers are nobody on loopback."""
    example = (PROJECT / "alerts" / "alertmanager.example.yaml").read_text()
    path = folder / "alertmanager.yaml"
    path.write_text(re.sub(r"https?://[^\s\"']+", "http://127.0.0.1:9/", example))
    return path


@pytest.fixture(scope="module")
def day(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BadDay]:
    manifests.apply(lab)
    watched, blind = lab.add_nodes(NODE, BLIND, status_frequency=TICK)
    gpus = GpuNode(lab, watched)
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"generateName": "day-"}}
    gpus.namespace = lab.api.create("/api/v1/namespaces", body)["metadata"]["name"]
    account = f"/api/v1/namespaces/{gpus.namespace}/serviceaccounts/default"
    wait_until(lambda: lab.api.exists(account), 15, "the namespace's ServiceAccount")
    with OtlpReceiver("http/protobuf") as receiver:
        receiver.mode = Mode.REFUSE
        day = BadDay(gpus, blind, receiver, tmp_path_factory.mktemp("prometheus"))
        try:
            day.live()
            yield day
        finally:
            day.rig.stop()
            day.prometheus.child.stop()
            day.alertmanager.child.stop()
            gpus.observer.close()
            gpus.stop_plugins()
            lab.api.delete(f"/api/v1/namespaces/{gpus.namespace}")
            clean(lab)
            lab.remove_node(NODE)
            lab.remove_node(BLIND)


def _filled(expr: str) -> str:
    for name, value in VARIABLES.items():
        expr = expr.replace(name, value)
    return expr


def _queries() -> Iterator[tuple[str, str]]:
    """Every query of the dashboards: where it is, and its expression."""
    for file in DASHBOARDS:
        board = json.loads(file.read_text())
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                yield f"{file.stem} / {panel['title']} / {target['refId']}", target["expr"]
        for annotation in board["annotations"]["list"]:
            yield f"{file.stem} / annotation {annotation['name']}", annotation["expr"]


def _rules() -> Iterator[tuple[str, str]]:
    for file in RULES:
        for group in yaml.safe_load(file.read_text())["groups"]:
            for rule in group["rules"]:
                yield rule.get("alert") or rule["record"], rule["expr"].replace(*SHORTER)


def _silent(values: Callable[[str], list[float]], queries: Iterator[tuple[str, str]]) -> dict[str, str]:
    """Those that never gave a number, with their expressions."""
    found = {where: _filled(expr) for where, expr in queries}
    assert found
    return {where: expr for where, expr in found.items() if not values(expr)}


def test_every_query_of_the_dashboards_has_given_data(day: BadDay) -> None:
    assert _silent(day.prometheus.values, _queries()) == {}


def test_every_rule_has_given_data_and_none_fails(day: BadDay) -> None:
    assert _silent(day.prometheus.values, _rules()) == {}
    loaded = day.prometheus.rules()
    assert {rule["name"] for rule in loaded} == {name for name, _ in _rules()}
    assert {rule["name"]: rule.get("lastError") for rule in loaded if rule["health"] != "ok"} == {}


def test_the_alert_about_the_lost_gpu_has_reached_alertmanager(day: BadDay) -> None:
    def arrived() -> Object | None:
        alerts = day.alertmanager.alerts()
        return next((one for one in alerts if one["labels"]["alertname"] == "AcceleratorFatalFault"), None)

    alert = wait_until(arrived, 20, "the alert", logs=[day.prometheus.child.log, day.alertmanager.child.log])
    assert alert["labels"]["severity"] == "critical"
    assert (alert["labels"]["node"], alert["labels"]["kind"]) == (NODE, "DeviceLost")
    assert NODE in alert["annotations"]["description"]
    assert alert["annotations"]["runbook_url"].endswith("AcceleratorFatalFault.md")
    assert [receiver["name"] for receiver in alert["receivers"]] == ["pager"]


def test_promtool_finds_nothing_wrong_with_the_pages_of_agent_and_controller(day: BadDay) -> None:
    for port in (day.rig.agents[NODE].port, day.rig.controller_port):
        code, said = promtool("check", "metrics", page=day.rig.metrics_page(port))
        assert (code, said) == (0, "")


def test_promtool_takes_the_rules_and_all_their_tests_pass() -> None:
    assert RULES and TESTS
    for what, files in (("check", RULES), ("test", TESTS)):
        code, said = promtool(what, "rules", *files)
        assert code == 0, said
