"""ops/paywarden.toml is what a reader takes for the truth about settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from features.aerospike_store import AerospikeSettings
from features.lmdb_store import LmdbSettings
from models.costs import CostSettings
from models.detectors import DetectorSettings
from models.training_settings import TrainingSettings
from ops.wiring import FeatureSettings, ServeSettings, StoreSettings
from schemas.settings import SECTIONS, read_source
from scoring.answered import AnsweredSettings
from scoring.grpc import GrpcSettings
from scoring.http_settings import HttpSettings
from scoring.mirror import MirrorSettings
from scoring.outbox import OutboxSettings
from scoring.policy import PolicySettings
from scoring.tls import TlsSettings
from scoring.tokens import AuthSettings
from scoring.turns import AdmissionSettings
from scoring.wire import RequestLimits
from streams.companion import CompanionSettings
from streams.drift_alerts import AlertSettings
from streams.drift_settings import DriftSettings
from streams.kafka import KafkaSettings
from streams.outcome_settings import OutcomeSettings
from streams.pipeline import StreamSettings
from streams.registry import RegistrySettings
from streams.topics import TopicSettings

EXAMPLE = Path(__file__).resolve().parents[3] / "ops" / "paywarden.toml"
SETTINGS: dict[str, type[Any]] = {
    "admission": AdmissionSettings,
    "aerospike": AerospikeSettings,
    "answered": AnsweredSettings,
    "auth": AuthSettings,
    "companion": CompanionSettings,
    "costs": CostSettings,
    "drift": DriftSettings,
    "drift_alerts": AlertSettings,
    "drift_detection": DetectorSettings,
    "features": FeatureSettings,
    "grpc": GrpcSettings,
    "http": HttpSettings,
    "kafka": KafkaSettings,
    "limits": RequestLimits,
    "lmdb": LmdbSettings,
    "mirror": MirrorSettings,
    "outbox": OutboxSettings,
    "outcomes": OutcomeSettings,
    "policy": PolicySettings,
    "registry": RegistrySettings,
    "serve": ServeSettings,
    "store": StoreSettings,
    "stream": StreamSettings,
    "tls": TlsSettings,
    "topics": TopicSettings,
    "training": TrainingSettings,
}


def test_every_section_has_settings() -> None:
    assert sorted(SECTIONS) == sorted(SETTINGS)


@pytest.mark.parametrize("section", sorted(SETTINGS))
def test_the_example_lists_every_setting_with_its_default(section: str) -> None:
    source = read_source(str(EXAMPLE), {})
    kind = SETTINGS[section]
    assert list(source.file[section]) == [field.name for field in dataclasses.fields(kind)]
    # The two that depend on the machine: a memory file system where there is one.
    paths = {name for name in ("path", "metrics") if "/dev/shm" in str(source.file[section].get(name))}
    for field in dataclasses.fields(kind):
        if field.name not in paths:
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            assert getattr(source.section(section, kind), field.name) == default
