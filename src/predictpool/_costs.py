"""What a batch costs a worker, learnt from what its batches took; pure state, no clock.

A batch of ``n`` rows is taken to cost ``fixed + n * per_row`` seconds. Each worker has such a
`Curve` for each key, which is what its requests have in common. One that was asked many keys has
another for all that come then, which is the guess for a key that it was never asked.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Mapping

# The keys that are remembered, those that were asked last. Where rows have ever new shapes there
# is no end to keys.
MOST_KEYS = 256
# So many keys a worker is asked to find out what they cost; that of more is guessed at first.
_MANY_KEYS = 16

# As shares of what a batch costs. NOISE: how far one batch may be off without being news.
# DRIFT: how much that may change from one batch to the next.
_NOISE, _DRIFT = 0.2, 0.05
# A batch counts as so many times what it was expected to take, at most: another program may have
# had the core for a while. Or all costs have changed, by UNSURE together, and one part of them
# alone by SHIFT: so what the next one takes is believed.
_SURPRISE, _UNSURE, _SHIFT = 3.0, 0.5, 0.01
# Of the first batch's seconds: what is taken for fixed, before there is a second size. Optimistic,
# so that larger batches are tried.
_FIXED_AT_FIRST = 7 / 8
_LEAST_SECONDS = 1e-6
_NOTHING: Mapping[int, Curve | None] = {}


class Curve:
    """The seconds of a batch by its rows, for one worker and one kind of requests.

    It is a Kalman filter of the two parts: both forget what is old, but a part that the
    batches of late say nothing about stays as it was.

    Args:
        rows, seconds: the first batch that was seen.

    Attributes:
        fixed, per_row: both are 0 or more.
        most: rows of the largest batch that was seen.
        seen: which of its key's batches was last learnt from, counted over all workers.
    """

    __slots__ = (
        "_below",
        "_fewest",
        "_ff",
        "_fp",
        "_pp",
        "_surprised",
        "fixed",
        "most",
        "per_row",
        "seen",
    )

    def __init__(self, rows: int, seconds: float) -> None:
        rows, seconds = max(rows, 1), max(seconds, _LEAST_SECONDS)
        self.seen = 0
        self._fewest = self.most = rows
        self.fixed = seconds * _FIXED_AT_FIRST
        self.per_row = (seconds - self.fixed) / rows
        # The variances of the two parts, and their covariance: how the seconds are divided is
        # not known at all, and what they are not well, for a first call may be a cold start.
        apart = (seconds / 2) ** 2
        self._ff, self._fp, self._pp = apart, -apart / rows, apart / rows**2
        self._surprised = False
        self._drift(_UNSURE, 0.0)
        self._below = self._below_fewest()

    def cost(self, rows: int) -> float:
        """Return the seconds that a batch of so many rows is expected to take."""
        rows = max(rows, 1)
        # For less than what was ever seen, each row costs as much as there: so that it is tried.
        return min(self.fixed + rows * self.per_row, rows * self._below)

    def learn(self, rows: int, seconds: float) -> None:
        """Take note of what a batch took."""
        rows = max(rows, 1)
        expected = max(self.fixed + rows * self.per_row, _LEAST_SECONDS)
        seconds = max(seconds, _LEAST_SECONDS)
        # More rows than ever before are no surprise, whatever they take.
        surprise = seconds > _SURPRISE * expected and rows <= self.most
        if surprise and not self._surprised:
            seconds = _SURPRISE * expected
        if self._surprised:
            self._drift(_UNSURE, _SHIFT)
        self._surprised = surprise
        self._fewest, self.most = min(self._fewest, rows), max(self.most, rows)
        # What disturbs a batch makes it longer, never shorter: a short one is believed sooner.
        noise = _NOISE**2 * seconds * expected
        self._forget(rows, _DRIFT * expected)
        f, p = self._ff + rows * self._fp, self._fp + rows * self._pp
        total = f + rows * p + noise
        error = seconds - expected
        self.fixed += f / total * error
        self.per_row += p / total * error
        self._ff -= f * f / total
        self._fp -= f * p / total
        self._pp -= p * p / total
        self._keep_positive(rows)
        self._below = self._below_fewest()

    def _below_fewest(self) -> float:
        return self.fixed / self._fewest + self.per_row

    def _forget(self, rows: int, seconds: float) -> None:
        """Know what so many rows take less well, by so many seconds, and nothing else.

        If all became less known with each batch, what none of them tells of would follow their
        noise, and be far off after some thousands.
        """
        f, p = self._ff + rows * self._fp, self._fp + rows * self._pp
        known = f + rows * p
        if known > 0:
            share = (seconds / known) ** 2
            self._ff += share * f * f
            self._fp += share * f * p
            self._pp += share * p * p

    def _drift(self, together: float, alone: float) -> None:
        """Know both parts less well, by so much of their values."""
        self._ff += (together * self.fixed) ** 2 + (alone * self._at(self._fewest)) ** 2
        self._fp += together**2 * self.fixed * self.per_row
        self._pp += (together * self.per_row) ** 2 + (alone * self._at(self.most) / self.most) ** 2

    def _at(self, rows: int) -> float:
        return self.fixed + rows * self.per_row

    def _keep_positive(self, rows: int) -> None:
        # What the whole batch costs stays, for that was seen.
        whole = max(self._at(rows), _LEAST_SECONDS)
        if self.fixed < 0:
            self.fixed, self.per_row = 0.0, whole / rows
        elif self.per_row < 0:
            self.fixed, self.per_row = whole, 0.0


class _Known:
    """What is known of a key.

    Attributes:
        batches: how many there were.
        curves: by slot; None after one batch, which may have been a cold start.
    """

    __slots__ = ("batches", "curves")

    def __init__(self) -> None:
        self.batches = 0
        self.curves: dict[int, Curve | None] = {}


class Costs:
    """The curves of all workers, by their slots."""

    def __init__(self) -> None:
        self._by_key: OrderedDict[Hashable, _Known] = OrderedDict()
        self._of_all: dict[int, Curve] = {}
        self._keys: Counter[int] = Counter()  # how many each slot was asked

    def of(self, key: Hashable) -> Mapping[int, Curve | None]:
        """Return the curve of each slot that has run batches of this key; None after the first."""
        known = self._by_key.get(key)
        return _NOTHING if known is None else known.curves

    def batches(self, key: Hashable) -> int:
        """Return how many batches of this key there were, as far as is known."""
        known = self._by_key.get(key)
        return 0 if known is None else known.batches

    def guess(self, slot: int) -> Curve | None:
        """Return what a slot's batches of a key may cost that it was never asked.

        Returns:
            its curve for all keys together; None before it was asked many: keys may differ in
            everything, so it is better to try.
        """
        return self._of_all.get(slot)

    def learn(self, slot: int, key: Hashable, rows: int, seconds: float) -> None:
        """Take note of what a batch took. Of a slot's first one of a key no more than that it was.

        It may have been a cold start. Where keys have no end, all are: the guess is for these.
        """
        known = self._by_key.get(key)
        if known is None:
            known = self._by_key[key] = _Known()
            if len(self._by_key) > MOST_KEYS:
                self._by_key.popitem(last=False)
        else:
            self._by_key.move_to_end(key)
        known.batches += 1
        if slot in known.curves:
            curve = known.curves[slot] = _learnt(known.curves[slot], rows, seconds)
            curve.seen = known.batches
        else:
            known.curves[slot] = None
            self._keys[slot] += 1
        if self._keys[slot] >= _MANY_KEYS:
            self._of_all[slot] = _learnt(self._of_all.get(slot), rows, seconds)

    def forget(self, slot: int) -> None:
        """Know nothing of a slot any more."""
        self._of_all.pop(slot, None)
        del self._keys[slot]
        for known in self._by_key.values():
            known.curves.pop(slot, None)


def _learnt(curve: Curve | None, rows: int, seconds: float) -> Curve:
    if curve is None:
        return Curve(rows, seconds)
    curve.learn(rows, seconds)
    return curve
