"""Settings that the companion refuses before it asks Kafka anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from paywarden.ops.wiring.companion import companion
from paywarden.ops.wiring.stores import card_shards
from paywarden.schemas.errors import BrokerUnavailable, Misconfigured
from paywarden.schemas.settings import Source, read_source
from paywarden.streams.kafka import admin


@pytest.fixture(autouse=True)
def kafka_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def require_broker(_: object) -> None:
        raise BrokerUnavailable("Kafka is asked")

    monkeypatch.setattr(admin, "require_broker", require_broker)


_TWO_HOPS = """
from paywarden.features.catalogue.attributes import device_id
from paywarden.features.catalogue.entity import Catalogue, Entity

card, device = Entity("card", key="card_id"), Entity("device", key="device_id")
CATALOGUE = Catalogue(
    entities=(card, device),
    features=(
        card.distinct("card_devices", device_id, "30d"),
        device.largest_of_last("cards_devices", card, "card_devices", 3),
    ),
)
"""


def started_companion(source: Source) -> None:
    with companion(source, lambda _: None):
        pass


@pytest.mark.parametrize("which", [started_companion, card_shards])
def test_cards_that_other_entities_look_at_are_on_every_host(which: Callable[[Source], object], tmp_path: Path) -> None:
    """`serve` asks `card_shards` when it starts."""
    (tmp_path / "catalogue.py").write_text(_TWO_HOPS, encoding="utf-8")
    (tmp_path / "route-key").write_text("ab" * 32, encoding="ascii")
    config = tmp_path / "paywarden.toml"
    config.write_text(
        '[features]\ncatalogue = "catalogue.py"\n'
        f'[shards]\ncount = 8\nhost = "a"\nhosts = ["a"]\nroute_key_file = "{tmp_path / "route-key"}"\n'
        f'[mirror]\npath = "{tmp_path / "mirror"}"\n',
        encoding="utf-8",
    )
    source = read_source(str(config), {})
    with pytest.raises(Misconfigured, match="got 'card', which 'cards_devices' looks at"):
        which(source)
