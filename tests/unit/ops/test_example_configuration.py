"""ops/paywarden.toml is what a reader takes for the truth about settings."""

from __future__ import annotations

import dataclasses

import pytest

from paywarden.ops.configuration import settings_types
from paywarden.schemas.settings import read_source, setting_fields
from tests.checkout import CHECKOUT

EXAMPLE = CHECKOUT / "ops" / "paywarden.toml"
SETTINGS = settings_types()


@pytest.mark.parametrize("section", sorted(SETTINGS))
def test_the_example_lists_every_setting_with_its_default(section: str) -> None:
    source = read_source(str(EXAMPLE), {})
    kind = SETTINGS[section]
    assert list(source.file[section]) == [field.name for field in setting_fields(kind)]
    # The two that depend on the machine: a memory file system where there is one.
    paths = {name for name in ("path", "metrics") if "/dev/shm" in str(source.file[section].get(name))}
    for field in setting_fields(kind):
        if field.name not in paths:
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            assert getattr(source.section(section, kind), field.name) == default


def test_processes_listen_on_a_loopback_address_unless_they_are_told_another() -> None:
    # A name of a host of shards, and the database of the index, are no addresses to listen at.
    others = {("shards", "host"), ("decision_index", "address")}
    found = {
        (section, field.name): str(field.default)
        for section, kind in SETTINGS.items()
        for field in setting_fields(kind)
        if field.name.endswith(("host", "address")) and (section, field.name) not in others
    }
    assert {"http", "grpc", "serve", "companion", "stream", "shadow", "console"} <= {name for name, _ in found}
    assert {place: default for place, default in found.items() if default.partition(":")[0] != "127.0.0.1"} == {}
