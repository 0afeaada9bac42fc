"""Labelled histograms and counters for the hot path: an observation costs a tenth of one of prometheus_client's.

They are written to by one thread, the event loop's, without a lock; a scrape on another may miss what is under way.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

SERIES_MAX = 2_000
OTHER = "other"


class Observations:
    """The observations of one histogram that have the same labels."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class Histograms(Collector):
    """One histogram for each set of labels; what comes after SERIES_MAX of them is counted as `other`."""

    def __init__(self, name: str, text: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._bounds = tuple(bounds)
        self._series: dict[tuple[str, ...], Observations] = {}

    def of(self, *values: str) -> Observations:
        """Return where observations with these labels go; callers keep it."""
        values = _bounded(values, self._series)
        series = self._series.get(values)
        if series is None:
            series = self._series[values] = Observations(self._bounds)
        return series

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """Name the metric without its series."""
        yield HistogramMetricFamily(self._name, self._text, labels=self._labels)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Give all series, as of now."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        for values, series in tuple(self._series.items()):
            up_to = 0
            buckets: list[tuple[str, float]] = []
            for bound, count in zip(bounds, tuple(series.counts), strict=True):
                up_to += count
                buckets.append((bound, up_to))
            family.add_metric(values, buckets, series.total)
        yield family


class Count:
    """What was counted with the same labels."""

    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total = 0

    def add(self, number: int = 1) -> None:
        """Count so many more."""
        self.total += number


class Counters(Collector):
    """One counter for each set of labels; what comes after SERIES_MAX of them is counted as `other`."""

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._series: dict[tuple[str, ...], Count] = {}

    def of(self, *values: str) -> Count:
        """Return where what has these labels is counted; callers keep it."""
        values = _bounded(values, self._series)
        series = self._series.get(values)
        if series is None:
            series = self._series[values] = Count()
        return series

    def describe(self) -> Iterator[CounterMetricFamily]:
        """Name the metric without its series."""
        yield CounterMetricFamily(self._name, self._text, labels=self._labels)

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Give all series, as of now."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, series in tuple(self._series.items()):
            family.add_metric(values, series.total)
        yield family


def _bounded(
    values: tuple[str, ...], series: dict[tuple[str, ...], Observations] | dict[tuple[str, ...], Count]
) -> tuple[str, ...]:
    if values in series or len(series) < SERIES_MAX:
        return values
    return (OTHER,) * len(values)
