"""Whether the peers that took part in a run were set up as well as they can be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.figures import Goal, Spread, ratios
from benchmarks.peers import ALL, Peer
from benchmarks.peers.environments import Environment
from benchmarks.report import Paper
from benchmarks.services import Level

# Below this share of what it reached elsewhere a peer is configured wrongly, and the run is void.
TOLERATED = 0.7
JUDGED_CALLERS = (64, 256)
# It has nothing that could be configured wrongly: where it stays below, the machine is too busy.
CONTROL = "ProcessPoolExecutor"
CONTROL_KNOWN = {64: 1630 / 1261, 256: 1609 / 1246}


@dataclass(frozen=True)
class Judged:
    """What became of one peer.

    Attributes:
        version: of its package; "" where it is not installed.
        reason: why it took no part; "" where it did.
        known: callers → calls per second against the loop, as `peers.Peer` has it.
        to_loop: the same in this run; empty where it took no part.
    """

    name: str
    version: str
    reason: str
    known: dict[int, float]
    to_loop: dict[int, Spread]

    def share(self, callers: int) -> float | None:
        """Return how much of its known ratio it reached; None where one of them is missing."""
        if callers not in self.known or callers not in self.to_loop:
            return None
        return self.to_loop[callers].median / self.known[callers]


def judge(
    environments: Mapping[str, Environment],
    failed: Mapping[str, str],
    speeds: Mapping[tuple[str, Level], list[float]],
    loop: str,
    peers: Sequence[Peer] = ALL,
) -> list[Judged]:
    """Return what became of each peer, those that took no part included, and of `CONTROL`.

    Args:
        environments: by name.
        failed: peer → why it did not start.
        speeds: who and at which level → calls per second, round by round.
        loop: who called the predictor in a loop, in a process set up like the peers' workers.
    """

    def to_loop(name: str) -> dict[int, Spread]:
        if (loop, Level(1, 1)) not in speeds:
            return {}  # it takes part only where peers do
        return {
            callers: ratios(speeds[name, Level(callers, 1)], speeds[loop, Level(1, 1)])
            for callers in JUDGED_CALLERS
            if (name, Level(callers, 1)) in speeds
        }

    control = Judged(CONTROL, "", "", CONTROL_KNOWN, to_loop(CONTROL))
    return [
        *([control] if control.to_loop else []),
        *(
            Judged(
                peer.name,
                environments[peer.environment].version,
                environments[peer.environment].reason or failed.get(peer.name, ""),
                peer.known,
                to_loop(peer.name),
            )
            for peer in peers
        ),
    ]


def soundness(judged: Sequence[Judged]) -> list[Goal]:
    """Return what must be reached for the run to count: no peer held back by its configuration."""
    return [
        Goal(f"{one.name}: share of its known ratio to the loop", share, TOLERATED, at_least=True)
        for one in judged
        if (share := one.share(JUDGED_CALLERS[-1])) is not None
    ]


def show(paper: Paper, judged: Sequence[Judged]) -> None:
    """Print which peers took part, and whether their figures can be believed."""
    table = paper.table(
        "Peers",
        "calls/s against the loop that is not pinned; in brackets what it was elsewhere",
        "peer",
        "version",
        *(f"{callers} callers" for callers in JUDGED_CALLERS),
        "took no part because",
    )
    for one in judged:
        table.add_row(
            one.name,
            one.version,
            *(_ratio(one, callers) for callers in JUDGED_CALLERS),
            _gist(one.reason),
        )
    paper.print(table)
    for goal in soundness(judged):
        if not goal.reached:
            why = (
                "the machine is too busy" if goal.name.startswith(CONTROL) else "configured wrongly"
            )
            paper.print(f"VOID: {goal.name} is {goal.figure:.2f}: {why}")


def _ratio(one: Judged, callers: int) -> str:
    known = f" ({one.known[callers]:.2f})" if callers in one.known else ""
    return f"{one.to_loop[callers].text()}{known}" if callers in one.to_loop else known.strip()


def _gist(reason: str) -> str:
    """Return the line of a traceback that says what happened."""
    lines = reason.strip().splitlines()
    return next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "")
