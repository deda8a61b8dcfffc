"""Fixtures of the lab tests: one cluster a session, nodes when first asked for, clean-up between modules."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import pytest

from tests.cannot_run import cannot_run
from tests.lab import binaries, manifests, rbac_usage
from tests.lab.api import ApiError
from tests.lab.lab import Lab
from tests.lab.node import Node
from tests.lab.processes import sigterm_as_ctrl_c, wait_until

OURS = "sickbay.dev"
HERE = Path(__file__).parent
PROBLEMS = pytest.StashKey[list[str]]()
LEFT_OUT = pytest.StashKey[list[pytest.Item]]()
USAGE = pytest.StashKey[Path]()
COMPLAINTS = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Name a folder where every lab of this session leaves what our programs were allowed and refused."""
    config.stash[LEFT_OUT] = []
    # Under xdist nobody knows of all tests; and a session within a session counts to the outer one.
    shared = getattr(config.option, "numprocesses", None) or hasattr(config, "workerinput")
    if shared or rbac_usage.FOLDER_VARIABLE in os.environ:
        return
    config.stash[USAGE] = folder = Path(tempfile.mkdtemp(prefix="sickbay-rbac-"))
    os.environ[rbac_usage.FOLDER_VARIABLE] = str(folder)


def pytest_unconfigure(config: pytest.Config) -> None:
    if folder := config.stash.get(USAGE, None):
        os.environ.pop(rbac_usage.FOLDER_VARIABLE, None)
        shutil.rmtree(folder, ignore_errors=True)


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.lab)
    # Workers of xdist share one cluster: `--dist loadgroup` sends this group to one of them.
    if item.config.pluginmanager.hasplugin("xdist"):
        item.add_marker(pytest.mark.xdist_group("lab"))


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    for item in items:
        item.config.stash[LEFT_OUT].append(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped:
        item.config.stash[LEFT_OUT].append(item)
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """After a run of every lab test: fail where permissions are granted that nobody used, or were missing."""
    folder = session.config.stash.get(USAGE, None)
    if folder is None or exitstatus != pytest.ExitCode.OK or not _is_whole(session):
        return
    usage = rbac_usage.load(folder)
    if usage is None:
        return
    found = rbac_usage.complaints(
        usage,
        always=rbac_usage.granted_by(rbac_usage.MANIFESTS),
        switched=rbac_usage.granted_by(rbac_usage.REPAIR),
    )
    if found:
        session.config.stash[COMPLAINTS] = found
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _is_whole(session: pytest.Session) -> bool:
    left_out = [item for item in session.config.stash[LEFT_OUT] if item.path.is_relative_to(HERE)]
    return not any("::" in word for word in session.config.args) and rbac_usage.is_whole(
        present=set(HERE.rglob("test_*.py")),
        selected={item.path for item in session.items},
        left_out={item.path for item in left_out if item.get_closest_marker("deep") is None},
        deep={item.path for item in left_out if item.get_closest_marker("deep") is not None},
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if complaints := config.stash.get(COMPLAINTS, []):
        terminalreporter.section(
            "PERMISSIONS: deploy AND THE PROGRAMS DO NOT AGREE", sep="!", red=True, bold=True
        )
        for complaint in complaints:
            terminalreporter.write_line(f"  - {complaint}", red=True)
    problems = config.stash.get(PROBLEMS, [])
    if not problems:
        return
    terminalreporter.section("THE LAB TESTS DID NOT RUN", sep="!", red=True, bold=True)
    for problem in problems:
        terminalreporter.write_line(f"  - {problem}", red=True)


@pytest.fixture(scope="session", autouse=True)
def lab_machine(pytestconfig: pytest.Config) -> None:
    """Skip every lab test where the machine cannot run the lab; with CI=true that is a failure."""
    problems = binaries.missing()
    if not problems:
        sigterm_as_ctrl_c()
        return
    pytestconfig.stash[PROBLEMS] = problems
    reason = f"the lab cannot run here: {'; '.join(problems)}"
    cannot_run(reason)


@pytest.fixture(scope="session")
def lab(lab_machine: None) -> Iterator[Lab]:
    """The session's cluster: a control plane, and the nodes that fixtures have added."""
    with Lab() as running:
        yield running


@pytest.fixture(scope="session")
def two_nodes(lab: Lab) -> tuple[Node, Node]:
    """Nodes `n1` and `n2` of the session's cluster, started together."""
    first, second = lab.add_nodes("n1", "n2")
    return first, second


@pytest.fixture
def namespace(lab: Lab) -> Iterator[str]:
    """A fresh namespace in which pods can be created; deleted afterwards, with what is in it."""
    metadata = {"generateName": "test-"}
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
    name = lab.api.create("/api/v1/namespaces", body)["metadata"]["name"]
    account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
    wait_until(lambda: lab.api.exists(account), 15, f"ServiceAccount default of namespace {name}")
    yield name
    lab.api.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture(scope="module")
def clean_cluster(lab: Lab) -> Iterator[None]:
    """After the module: no pod in `default`, no object of ours, every node schedulable and without our keys."""
    yield
    clean(lab)


def clean(lab: Lab) -> None:
    """Put a shared cluster back to how a module expects it; nodes stay."""
    now = {"gracePeriodSeconds": 0}
    lab.api.delete("/api/v1/namespaces/default/pods", {"apiVersion": "v1", "kind": "DeleteOptions", **now})
    background = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
    lab.api.delete(manifests.JOBS, background)
    with contextlib.suppress(ApiError):
        for resource in lab.api.get(f"/apis/{OURS}/v1alpha1")["resources"]:
            # The people's switches are one object that is installed, not made: they are put back, not deleted.
            if resource["name"] == "acceleratorcontrols":
                switches = f"/apis/{OURS}/v1alpha1/acceleratorcontrols/default"
                lab.api.patch(switches, {"spec": {"pause": None, "nodes": None}})
            elif "/" not in resource["name"]:
                lab.api.delete(f"/apis/{OURS}/v1alpha1/{resource['name']}")
    for node in lab.api.items("/api/v1/nodes"):
        gone = {
            field: {key: None for key in node["metadata"].get(field, {}) if key.startswith(f"{OURS}/")}
            for field in ("labels", "annotations")
        }
        taints = [t for t in node["spec"].get("taints", []) if not t["key"].startswith(f"{OURS}/")]
        patch = {"metadata": gone, "spec": {"unschedulable": None, "taints": taints or None}}
        lab.api.patch(f"/api/v1/nodes/{node['metadata']['name']}", patch)
