from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import generate_latest

from mesh.telemetry import tallies
from mesh.telemetry.tallies import Counters, Histograms

BOUNDS = (0.5, 1, 4, 1_024)


def shown(registry: CollectorRegistry) -> set[str]:
    """Return what a scrape shows, without the times at which prometheus_client began to count."""
    lines = generate_latest(registry).decode().splitlines()
    return {line for line in lines if "_created" not in line}


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from((0, 0.5, 0.75, 1, 3.5, 4, 1_024, 5_000)))))
def test_a_scrape_shows_what_the_library_would(observed: list[tuple[str, float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    histograms, counters = Histograms("h", "Text.", ("x",), BOUNDS), Counters("c", "Text.", ("x",))
    ours.register(histograms)
    ours.register(counters)
    histogram = Histogram("h", "Text.", ["x"], registry=theirs, buckets=BOUNDS)
    counter = Counter("c", "Text.", ["x"], registry=theirs)
    for label, value in observed:
        histograms.of(label).add(value)
        counters.of(label).add(3)
        histogram.labels(label).observe(value)
        counter.labels(label).inc(3)
    assert shown(ours) == shown(theirs)


def test_so_many_series_are_kept_and_the_rest_is_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tallies, "SERIES_MAX", 2)
    counters = Counters("c", "Text.", ("x", "y"))
    for name in "abcda":
        counters.of(name, "z").add()
    (family,) = counters.collect()
    totals = {tuple(sample.labels.values()): sample.value for sample in family.samples}
    assert totals == {("a", "z"): 2, ("b", "z"): 1, ("other", "other"): 2}
