"""Whatever looks at pods come, twice, late, after a break of the watch or a restart: each stage is measured once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from exporter.dispatch import Dispatches, Outcome, Stage, Told
from exporter.dispatch_trace import Dispatched
from exporter.pods import PodSeen, PodsListed

START = datetime(2026, 1, 1, 12, tzinfo=UTC)
POD_NAMES = ("a", "b", "c")
AGENT, KUBELET, WATCH = "agent", "kubelet", "watch"


def cut(moment: datetime) -> datetime:
    return moment.replace(microsecond=0)


@dataclass
class Life:
    """What happens to one pod, in seconds from its creation: an ending of its way, and how far it has come."""

    name: str
    created: datetime
    steps: tuple[float, float, float]
    ending: str
    reached: int = 0
    shown: list[PodSeen] = field(default_factory=list)

    def look(self, now: datetime, kubelet_started: datetime) -> PodSeen:
        """As the kubelet shows it now."""
        admitted, running, ready = (self.created + timedelta(seconds=one) for one in self.steps)
        pod = PodSeen(
            uid=f"uid-{self.name}",
            namespace="team",
            name=self.name,
            resource=f"nvidia.com/mig-{self.name}",
            created=cut(self.created),
            at=now,
            scheduled=cut(self.created),
            arrived=max(self.created, kubelet_started),
            admitted=cut(admitted),
            phase="Pending",
            began=True,
        )
        if self.ending == "Rejected":
            return replace(pod, phase="Failed", reason="UnexpectedAdmissionError", began=False)
        if self.reached >= 1:
            pod = replace(pod, running=cut(running), phase="Running")
        if self.reached >= 2:
            pod = replace(pod, ready=cut(ready))
        ended = self.reached >= 2 and self.ending in ("Failed", "Succeeded")
        return replace(pod, phase=self.ending, ready=None) if ended else pod


class Node:
    """Pods of one node, and an agent that is told of them, well or badly."""

    def __init__(self, lives: list[Life]) -> None:
        self.now = START
        self.kubelet_started = START - timedelta(hours=1)
        self.lives = {life.name: life for life in lives}
        self.there: dict[str, Life] = {}
        self.dispatches = Dispatches()
        self.stages: dict[str, list[Stage]] = {life.name: [] for life in lives}
        self.outcomes: dict[str, list[Outcome]] = {life.name: [] for life in lives}
        self.told: dict[str, list[Dispatched]] = {}

    def restart_agent(self) -> None:
        """It remembers what it has told."""
        self.dispatches = Dispatches(over=frozenset(self.told))
        self.relist()

    def take(self, told: Told | None) -> None:
        """What the outlet does with it."""
        if told is None:
            return
        pod = told.progress.pod
        if told.progress.measured:
            self.stages[pod.name] += told.stages
            self.outcomes[pod.name] += [told.outcome] if told.outcome else []
        if told.outcome:
            self.told.setdefault(pod.uid, []).append(Dispatched.of(told.progress, told.outcome, ()))

    def relist(self) -> None:
        looks = [
            replace(life.look(self.now, self.kubelet_started), listed=True) for life in self.there.values()
        ]
        for pod in looks:
            self.tell(pod)
        self.list_only(frozenset(pod.uid for pod in looks))

    def list_only(self, uids: frozenset[str]) -> None:
        self.dispatches, told = self.dispatches.with_list(PodsListed(uids, self.now))
        for one in told:
            self.take(one)

    def tell(self, pod: PodSeen) -> None:
        self.dispatches, told = self.dispatches.with_pod(pod)
        self.take(told)

    def advance(self, name: str, *, told: bool) -> None:
        """The pod's next step. It may happen while nobody watches."""
        self.now += timedelta(seconds=0.3)
        life = self.lives[name]
        if name not in self.there:
            life.created = self.now
            self.there[name] = life
        elif life.reached < 2:
            life.reached += 1
        else:
            self.there.pop(name)
            del self.lives[name]
            if told:
                self.tell(replace(life.look(self.now, self.kubelet_started), deleted=True))
            return
        life.shown.append(life.look(self.now, self.kubelet_started))
        if told:
            self.tell(life.shown[-1])

    def disturb(self, what: str) -> None:
        self.now += timedelta(seconds=1.1)
        match what:
            case "agent":
                self.restart_agent()
            case "kubelet":
                self.kubelet_started = self.now
                self.list_only(frozenset())
                self.now += timedelta(seconds=0.5)
                for life in self.there.values():
                    self.tell(life.look(self.now, self.kubelet_started))
            case _:
                self.relist()


endings = st.sampled_from(["Running", "Running", "Rejected", "Failed", "Succeeded"])
steps = st.tuples(st.floats(-2, 5), st.floats(-2, 50), st.floats(-2, 5))
moves = st.lists(
    st.one_of(
        st.tuples(st.just("advance"), st.sampled_from(POD_NAMES), st.booleans()),
        st.tuples(st.just("repeat"), st.sampled_from(POD_NAMES), st.integers(0, 3)),
        st.tuples(st.just("disturb"), st.sampled_from([AGENT, KUBELET, WATCH]), st.none()),
    ),
    max_size=40,
)


def play(node: Node, script: list[tuple[str, str, object]]) -> None:
    known = dict(node.lives)
    for what, name, extra in script:
        if what == "advance" and name in node.lives:
            node.advance(name, told=bool(extra))
            if not extra:
                # The watch was broken meanwhile: it lists anew.
                node.relist()
        elif what == "repeat" and known[name].shown:
            shown = known[name].shown
            node.tell(shown[min(int(str(extra)), len(shown) - 1)])
        elif what == "disturb":
            node.disturb(name)


@given(st.tuples(endings, endings, endings), st.tuples(steps, steps, steps), moves)
def test_no_stage_is_measured_twice_or_negative_and_no_span_is_told_in_two_ways(
    ends: tuple[str, ...],
    paces: tuple[tuple[float, float, float], ...],
    script: list[tuple[str, str, object]],
) -> None:
    lives = [Life(name, START, pace, end) for name, pace, end in zip(POD_NAMES, paces, ends, strict=True)]
    node = Node(lives)
    play(node, script)
    for name in POD_NAMES:
        stages = [stage.name for stage in node.stages[name]]
        assert len(stages) == len(set(stages))
        assert all(stage.seconds >= 0 and stage.ended >= stage.began for stage in node.stages[name])
        assert len(node.outcomes[name]) <= 1
    assert all(len(told) == 1 for told in node.told.values())


@given(
    st.tuples(endings, endings, endings),
    st.lists(st.tuples(st.sampled_from(POD_NAMES), st.lists(st.integers(0, 3), max_size=3)), max_size=16),
)
def test_looks_that_come_again_and_late_change_no_figure(
    ends: tuple[str, ...], script: list[tuple[str, list[int]]]
) -> None:
    def played(*, disturbed: bool) -> Node:
        lives = [Life(name, START, (0, 1, 1), end) for name, end in zip(POD_NAMES, ends, strict=True)]
        node, known = Node(lives), {life.name: life for life in lives}
        for name, again in script:
            if name in node.lives:
                node.advance(name, told=True)
            for one in again if disturbed and known[name].shown else ():
                node.tell(known[name].shown[min(one, len(known[name].shown) - 1)])
        return node

    well, badly = played(disturbed=False), played(disturbed=True)
    assert badly.stages == well.stages and badly.outcomes == well.outcomes
