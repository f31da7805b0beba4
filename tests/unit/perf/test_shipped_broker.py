"""Benchmarks measure the broker that the Compose file starts."""

from __future__ import annotations

from perf.tools.shipped_broker import shipped_broker, shipped_jvm


def test_a_setting_has_the_name_that_the_image_gives_it() -> None:
    settings = shipped_broker()
    assert settings["metadata.max.idle.interval.ms"] == "10000"
    assert settings["num.io.threads"] == "4"
    assert all(isinstance(value, str) for value in settings.values())


def test_the_place_of_the_broker_is_the_benchmarks_own() -> None:
    of_the_place = ("listeners", "advertised.listeners", "log.dirs", "node.id", "controller.quorum.voters", "opts")
    assert not set(of_the_place) & set(shipped_broker())


def test_the_jvm_gets_heap_and_options() -> None:
    assert shipped_jvm() == ["-Xms1g", "-Xmx1g", "-XX:-UsePerfData"]
