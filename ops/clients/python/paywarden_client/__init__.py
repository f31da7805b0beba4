"""Client of Paywarden, the fraud scoring service. ops/clients/SPECIFICATION.md describes it, rule by rule.

from paywarden_client import Client, ClientSettings, Payment

with Client(ClientSettings("https://paywarden:8443", token=key, route_key=route_key)) as client:
    decision = client.score(Payment("p-1", now_ms, "card-000001", "merchant-0001", 4999, "EUR"))
    decision.action                   # "approve", "review" or "decline"
    decision.stand_in                 # True if the service did not answer in time
"""

from __future__ import annotations

from .aio import AsyncClient
from .answers import ACTIONS, CAUSES, Decision
from .calls import VERSION
from .client import Client
from .errors import PaywardenError, WrongRequest, WrongSettings
from .payments import Payment
from .routing import route_of
from .settings import ClientSettings, Hooks
from .stand_in import StandInPolicy

__version__ = VERSION
__all__ = [
    "ACTIONS",
    "CAUSES",
    "AsyncClient",
    "Client",
    "ClientSettings",
    "Decision",
    "Hooks",
    "Payment",
    "PaywardenError",
    "StandInPolicy",
    "WrongRequest",
    "WrongSettings",
    "route_of",
]
