"""Settings that the companion refuses before it asks Kafka anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from paywarden.ops.wiring.companion import companion
from paywarden.schemas.errors import BrokerUnavailable, Misconfigured, PaywardenError
from paywarden.schemas.settings import read_source
from paywarden.streams.kafka import admin


@pytest.fixture(autouse=True)
def kafka_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def require_broker(_: object) -> None:
        raise BrokerUnavailable("Kafka is asked")

    monkeypatch.setattr(admin, "require_broker", require_broker)


def refusal(folder: Path, address: str) -> PaywardenError:
    config = folder / "paywarden.toml"
    config.write_text(
        f'[overlay]\nenabled = true\nexchange = true\nexchange_address = "{address}"\npath = "{folder / "overlay"}"\n'
        f'[mirror]\npath = "{folder / "mirror"}"\n',
        encoding="utf-8",
    )
    with pytest.raises(PaywardenError) as refused, companion(read_source(str(config), {}), lambda _: None):
        pass
    return refused.value


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0"])
def test_the_exchange_between_hosts_takes_a_key_of_the_deployment(address: str, tmp_path: Path) -> None:
    """With the public one, anyone who reaches the port could make payments up."""
    found = refusal(tmp_path, address)
    assert isinstance(found, Misconfigured)
    assert str(found).startswith("[overlay] exchange: wanted an identity key of this deployment")
