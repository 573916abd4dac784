"""Which worker gets what, in a pool whose workers are on different kinds of device.

One row may be answered sooner by a CPU and many by a GPU. So each request is planned for the
worker that will finish it first, counting what the worker still has to do: the batch that it runs,
and what was planned for it before. What is planned for an idle worker is sent; what is planned for
a busy one stays in the queue, and is planned anew at whatever happens next.

The rules:

- The oldest request is planned first. Requests with equal keys are planned together.
- A busy worker is counted on until the end that is expected of its batch, and a margin. One
  of whose batch nothing is known is not counted on at all.
- An idle worker of which nothing is known gets one request, the smallest that waits; and, since
  that may have been a cold start, one more.
- An idle worker that was passed over for long gets one now and then, since it may have
  become faster: what is expected to be lost by it stays below a share of the time served.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable, Sequence
from itertools import islice
from typing import NamedTuple

from predictpool._costs import Costs, Curve
from predictpool._devices import Device
from predictpool._scheduler import Batch, Request

# How much longer than expected a busy worker is counted on: as a share, and in seconds.
_MARGIN, _MARGIN_SECONDS = 0.5, 1e-3
# What trying passed-over workers may cost, as a share of the seconds that all workers have served
# since the last try; and how many batches of a key run before a worker counts as passed over.
_PRICE, _PASSED_OVER = 0.01, 32
# A worker gets at most so many times the rows that its largest batch had: what many rows cost is
# not known before they were tried.
_GROWTH = 8
# Of each key a batch for each idle worker is planned, and at most so many more, so that planning
# takes bounded time. A worker that gets none of these needs as long for one as the busy ones
# together for so many: little is lost where it stays idle.
_BATCHES = 32


def mixed(devices: Iterable[Device]) -> bool:
    """Whether workers on these devices may need different times for the same batch."""
    return len({(one.kind, one.threads if one.kind == "cpu" else 0) for one in devices}) > 1


class _Place:
    """A worker while it is planned what it gets.

    Args:
        limit: rows that may share a batch.

    Attributes:
        begins: when its next batch does.
        open: whether it is idle, and its first batch takes more.
        first: that batch.
        begun: whether its latest batch has requests; they may be without rows.
        rows: of that batch.
        most: rows that may share one now: not many more than it was ever seen with.
        curve: what a batch costs it, as far as is known; of the requests that are planned.
        seen: which of the key's batches that is known from; 0 if it is a guess.
    """

    __slots__ = (
        "begins",
        "begun",
        "curve",
        "first",
        "limit",
        "most",
        "open",
        "rows",
        "seen",
        "slot",
    )

    def __init__(self, slot: int, limit: int, begins: float, *, idle: bool) -> None:
        self.slot = slot
        self.limit = self.most = limit
        self.begins = begins
        self.open = idle
        self.first: list[Request] = []
        self.begun = False
        self.rows = self.seen = 0
        self.curve: Curve | None = None

    def turn_to(self, curve: Curve | None, guess: Curve | None) -> None:
        """Begin with requests of another key."""
        if self.begun:
            self.close()
        self.curve, self.seen = (guess, 0) if curve is None else (curve, curve.seen)
        if self.curve is not None:
            self.most = min(self.limit, _GROWTH * self.curve.most)

    def end_with(self, rows: int) -> float:
        """Return when it would have answered a request of so many rows, planned last."""
        assert self.curve is not None
        together = self.rows + rows
        if self.begun and together > self.most:
            return self.begins + self.curve.cost(self.rows) + self.curve.cost(rows)
        return self.begins + self.curve.cost(together)

    def take(self, request: Request) -> None:
        """Plan a request for it."""
        if self.begun and self.rows + request.rows > self.most:
            self.close()
        self.begun = True
        self.rows += request.rows
        if self.open:
            self.first.append(request)
        if self.rows >= self.most:
            self.close()

    def fill(self, rows: int, count: int, before: float) -> int:
        """Plan what fills its next batch at once; it is not open.

        Args:
            rows: of each of the next requests.
            count: how many of these there are.
            before: when another would have answered the first of them.

        Returns:
            how many were planned; 0 where they have to be looked at one by one.
        """
        assert self.curve is not None
        fits = max(self.most // rows, 1) if rows else count + 1
        if fits > count or (self.begun and self.rows + rows <= self.most):
            return 0
        if self.begun:
            self.close()
        if self.begins + self.curve.cost(fits * rows) >= before:
            return 0
        self.begins += self.curve.cost(fits * rows)
        return fits

    def close(self) -> None:
        """Begin another batch after the one that was planned."""
        if self.begun and self.curve is not None:
            self.begins += self.curve.cost(self.rows)
        self.rows, self.begun, self.open = 0, False, False


class _Expected(NamedTuple):
    """When a busy worker is expected to answer, and until when it is counted on."""

    end: float
    until: float


class Routes:
    """Decides which of several unequal workers gets what. See the module's docstring."""

    def __init__(self, max_batch_size: int) -> None:
        self._max_batch_size = max_batch_size
        self._costs = Costs()
        self._models: dict[int, object] = {}
        self._expected: dict[int, _Expected] = {}
        self._served = 0.0

    def worker_ready(self, slot: int, model: object) -> None:
        """Forget what a slot's calls cost, if it has another model now."""
        if self._models.get(slot) is not model:
            self.forget(slot)
            self._models[slot] = model

    def forget(self, slot: int) -> None:
        """Know nothing of a slot any more, and let go of its model."""
        self._costs.forget(slot)
        self._models.pop(slot, None)

    def started(self, batch: Batch) -> None:
        """Expect the end of a batch."""
        key, slot = batch.requests[0].key, batch.slot
        curve = self._costs.of(key).get(slot) or self._costs.guess(slot)
        if curve is not None:
            cost = curve.cost(batch.rows)
            until = batch.started_at + cost * (1 + _MARGIN) + _MARGIN_SECONDS
            self._expected[slot] = _Expected(batch.started_at + cost, until)

    def ended(self, batch: Batch) -> None:
        """Expect nothing more of a batch, however it ended."""
        self._expected.pop(batch.slot, None)

    def answered(self, batch: Batch, now: float) -> None:
        """Learn from what a batch took."""
        seconds = now - batch.started_at
        self._served += seconds
        key = batch.requests[0].key
        self._costs.learn(batch.slot, key, batch.rows, seconds)

    def counts_until(self, now: float, busy: Iterable[int]) -> float:
        """Return until when one of these workers is counted on at least; inf if none is."""
        untils = [self._expected[slot].until for slot in busy if slot in self._expected]
        return min((until for until in untils if until > now), default=math.inf)

    def plan(
        self,
        now: float,
        lines: Iterable[tuple[Hashable, Iterable[Request]]],
        idle: Sequence[int],
        busy: Iterable[int],
        alone: Collection[int],
    ) -> list[tuple[int, list[Request]]]:
        """Return what is to be sent to idle workers now.

        Args:
            lines: the requests that wait, by their keys, the oldest first.
            idle: of several that are equal the last is taken.
            busy: those that will go on after their batches.
            alone: those whose requests do not share a batch.
        """
        most, costs = self._max_batch_size, self._costs
        places = [
            _Place(slot, 0 if slot in alone else most, now, idle=True) for slot in reversed(idle)
        ]
        for slot in busy:
            expected = self._expected.get(slot)
            if expected is not None and now < expected.until:
                begins = max(now, expected.end)
                places.append(_Place(slot, 0 if slot in alone else most, begins, idle=False))
        for key, requests in lines:
            if all(place.first for place in places[: len(idle)]):
                break
            curves = costs.of(key)
            for place in places:
                place.turn_to(curves.get(place.slot), costs.guess(place.slot))
            looked_at = islice(requests, (len(idle) + _BATCHES) * most)
            self._plan_line(list(looked_at), places, costs.batches(key) - _PASSED_OVER)
        return [(place.slot, place.first) for place in places if place.first]

    def _plan_line(self, requests: list[Request], places: list[_Place], before: int) -> None:
        known = [place for place in places if place.curve is not None]
        if len(known) < len(places):
            for place in places:
                if place.open and place.curve is None and requests:
                    _try_one(place, min(requests, key=_rows), requests)
                    place.begins = math.inf  # nobody knows when this one ends
        if len(known) > 1 and requests:
            self._try_passed_over(requests, known, before)
        _give(requests, known)

    def _try_passed_over(self, requests: list[Request], known: list[_Place], before: int) -> None:
        """Give one request to a worker of which nothing was learnt since a batch of this key."""
        passed_over = [place for place in known if place.open and place.seen < before]
        if not passed_over:
            return
        request = min(requests, key=_rows)
        for place in sorted(passed_over, key=_seen):
            end = place.end_with(request.rows)
            sooner = min(other.end_with(request.rows) for other in known if other is not place)
            # Otherwise it is its turn anyway, or too dear yet.
            if 0 < end - sooner <= _PRICE * self._served:
                self._served = 0.0
                _try_one(place, request, requests)
                return


def _give(requests: list[Request], known: list[_Place]) -> None:
    """Plan each request for who will finish it first, until no idle worker takes more."""
    left = len([place for place in known if place.open])
    alike = len(set(map(_rows, requests))) == 1
    rows, ends = -1, [0.0]
    at, count = 0, len(requests)
    while left and at < count:
        request = requests[at]
        if request.rows != rows:
            rows = request.rows
            ends = [place.end_with(rows) for place in known]
        index = ends.index(min(ends))
        best = known[index]
        was_open = best.open
        taken = 0
        if alike and not was_open:
            others = min(ends[:index] + ends[index + 1 :], default=math.inf)
            taken = best.fill(rows, count - at, others)
        if not taken:
            best.take(request)
        at += taken or 1
        left -= was_open and not best.open
        ends[index] = best.end_with(rows)


def _try_one(place: _Place, request: Request, requests: list[Request]) -> None:
    requests.remove(request)
    place.take(request)
    place.close()


def _rows(request: Request) -> int:
    return request.rows


def _seen(place: _Place) -> int:
    return place.seen
