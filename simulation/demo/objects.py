"""What the demo's cluster has in it: Sickbay's own objects, a device plugin, and a team's Job and Deployment."""

from __future__ import annotations

from typing import Any

import yaml

from simulation.cluster.interface import Object, Store
from simulation.demo.host_files import GPU
from simulation.demo.processes import PROJECT

OPERAND = "nvidia.com/gpu.deploy.device-plugin"
"""The label by which GPU Operator places its device plugin."""

DEPLOYED = PROJECT / "deploy"
TEMPLATES = DEPLOYED / "repair" / "templates.yaml"
TEAM = "ml"
REPAIRS = "sickbay-repair"
PLUGIN = "nvidia-device-plugin-daemonset"
REPORTS = "acceleratorreports.sickbay.dev"
SESSIONS = "acceleratorremediations.sickbay.dev"

POLICY = """\
apiVersion: sickbay.dev/v1alpha1
kind: Policy
metadata: {name: demo}
rules:
- name: plugins
  match: {advice: [RestartPlugin]}
  mode: Auto
- name: fatal
  match: {severities: [Fatal]}
  mode: Auto
  drain: {mode: Evict, deadline: 3m}
- name: everything-else
  mode: Observe
budgets: {maxFenced: 50%, maxDisrupted: 50%}
healthyDwell: 3s                      # 5m where nobody is watching
devicePlugin: {healthyDwell: 3s}
repair: {repeats: {limit: 100}}
"""


def populate(store: Store) -> None:
    """Create everything but the nodes."""
    for namespace in ("kube-system", "sickbay-system", "sickbay-agent", REPAIRS, TEAM):
        if not any(one["metadata"]["name"] == namespace for one in store.list("namespaces")):
            store.create("namespaces", {"metadata": {"name": namespace}})
    control = yaml.safe_load((DEPLOYED / "manifests" / "control.yaml").read_text())
    store.create("acceleratorcontrols.sickbay.dev", control)
    for template in yaml.safe_load_all(TEMPLATES.read_text()):
        if template and template["kind"] == "PodTemplate":
            store.create("podtemplates", template, namespace=template["metadata"]["namespace"])
    store.create("daemonsets.apps", _plugin(), namespace="kube-system")


def give_work(store: Store) -> None:
    """The workloads: a training Job on both nodes, and a service that keeps one of its two replicas through a drain."""
    store.create("jobs.batch", _training(), namespace=TEAM)
    store.create("deployments.apps", _inference(), namespace=TEAM)
    store.create("poddisruptionbudgets.policy", _budget(), namespace=TEAM)


def scale_inference(store: Store, replicas: int) -> None:
    """More work for the service's pods, which the scheduler spreads over the nodes."""
    store.patch("deployments.apps", "inference", {"spec": {"replicas": replicas}}, namespace=TEAM)


def _plugin() -> Object:
    """The device plugin as GPU Operator runs it: its container is `python -m simulation.plugin`."""
    labels = {"app": PLUGIN}
    spec = {
        "priorityClassName": "system-node-critical",
        "nodeSelector": {OPERAND: "true"},
        "tolerations": [{"operator": "Exists"}],
        "containers": [{"name": "nvidia-device-plugin", "image": "simulation.plugin"}],
    }
    return {
        "metadata": {"name": PLUGIN, "namespace": "kube-system"},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def _training() -> Object:
    return {
        "metadata": {"name": "train", "namespace": TEAM},
        "spec": {
            "parallelism": 2,
            "completions": 2,
            "backoffLimit": 20,
            "template": _pods("train", gpus=2, restartPolicy="Never"),
        },
    }


def _inference() -> Object:
    return {
        "metadata": {"name": "inference", "namespace": TEAM},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "inference"}},
            "template": _pods("inference", gpus=1),
        },
    }


def _budget() -> Object:
    return {
        "metadata": {"name": "inference", "namespace": TEAM},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "inference"}}},
    }


def _pods(app: str, *, gpus: int, **more: Any) -> Object:
    labels = {"app": app}
    return {
        "metadata": {"labels": labels},
        "spec": {
            "containers": [{"name": "main", "image": app, "resources": {"limits": {GPU: str(gpus)}}}],
            **more,
        },
    }
