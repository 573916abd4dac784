"""What others have written for the same work, each in an environment of its own; see `ALL`.

A peer's module in here has the server as its users write it, for two workers that hold the same
cached generator with one TensorFlow thread, and the client's half. Those modules can be imported
only in the peer's environment.
"""

import functools
import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import services
from benchmarks.harness import Contender, ContenderFailed
from benchmarks.load import Ask
from benchmarks.models import Model
from benchmarks.peers import environments
from benchmarks.peers.contender import PeerContender
from benchmarks.services import Service

Note = Callable[[str], None]

# PyTriton gives its two halves a second to find each other, which is not always enough.
TRIES = 3


@dataclass(frozen=True)
class Peer:
    """One way to run one of them.

    Attributes:
        name: what tables call it.
        environment: in which it runs; see `environments.PEERS`.
        module: of this package.
        batching: whether it makes batches.
        known: callers → calls per second, against the cached generator called in a loop by one
            process, as measured once with another model by somebody who wished the peers well; two
            workers on two cores. Empty where nobody has.
    """

    name: str
    environment: str
    module: str
    batching: bool
    known: dict[int, float]


def _known(few: float, many: float) -> dict[int, float]:
    """Return the ratios; the loop answered 1261 and 1246 calls per second beside them."""
    return {64: few / 1261, 256: many / 1246}


ALL = (
    Peer("Ray actors", "ray", "ray_actors", False, _known(697, 730)),
    Peer("Ray Serve, batching", "ray", "ray_serve", True, _known(219, 247)),
    Peer("LitServe", "litserve", "litserve_server", False, _known(732, 727)),
    Peer("LitServe, batching", "litserve", "litserve_server", True, _known(708, 716)),
    Peer("mosec", "mosec", "mosec_server", False, _known(1182, 1219)),
    Peer("mosec, batching", "mosec", "mosec_server", True, _known(6764, 8766)),
    Peer("MLServer", "mlserver", "mlserver_server", False, _known(695, 655)),
    Peer("MLServer, batching", "mlserver", "mlserver_server", True, _known(1254, 1527)),
    Peer("BentoML", "bentoml", "bentoml_server", False, _known(788, 776)),
    Peer("BentoML, batching", "bentoml", "bentoml_server", True, _known(1212, 1285)),
    Peer("PyTriton", "pytriton", "pytriton_server", False, {}),
    Peer("PyTriton, batching", "pytriton", "pytriton_server", True, _known(1258, 1407)),
)


@dataclass(frozen=True)
class PeerService(Service):
    """A peer as one of the things to ask.

    Attributes:
        python: of its environment.
    """

    python: Path = Path()

    def start(self, model: Model) -> Contender:
        """Start it in its environment."""
        return PeerContender(self.name, self.python, services.serve, self, model)


def installed(
    directory: Path, peers: Sequence[Peer] = ALL
) -> tuple[list[PeerService], dict[str, environments.Environment]]:
    """Return what can be asked, and what is known of every environment, by name."""
    names = dict.fromkeys(peer.environment for peer in peers)
    found = {name: environments.find(name, directory) for name in names}
    there = [
        PeerService(
            peer.name,
            "peer",
            functools.partial(opened, module=peer.module, batching=peer.batching),
            "uvloop",
            python,
        )
        for peer in peers
        if (python := found[peer.environment].python)
    ]
    return there, found


def start(
    listed: Sequence[PeerService], model: Model, note: Note, started: dict[str, Contender]
) -> dict[str, str]:
    """Start peers, one after the other: each has time limits of its own for that.

    Args:
        started: gets those that have started, by name.

    Returns:
        why the others have not, by name.
    """
    failed = {}
    for service in listed:
        note(f"starting: {service.name}")
        for _ in range(TRIES):
            started[service.name] = service.start(model)
            try:
                started[service.name].result()
            except ContenderFailed as failure:
                started.pop(service.name).end()
                failed[service.name] = str(failure)
            else:
                failed.pop(service.name, None)
                break
    return failed


def starter(name: str, directory: Path) -> Callable[..., Contender] | None:
    """Return what starts a contender in an environment, like `Contender` here; None without one.

    Args:
        name: of the environment.
    """
    python = environments.find(name, directory).python
    if python is None:
        return None

    def start_there(name: str, serve: Callable[..., None], *arguments: Any) -> Contender:
        return PeerContender(name, python, serve, *arguments)

    return start_there


def opened(model: Model, *, module: str, batching: bool) -> AbstractAsyncContextManager[Ask]:
    """Start a peer, in its environment; yields what asks it."""
    imported = importlib.import_module(f"{__name__}.{module}")
    asking: AbstractAsyncContextManager[Ask] = imported.opened(model, batching)
    return asking
