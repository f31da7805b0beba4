"""The routes of a gateway: each version of the contract has its own, over HTTP and over gRPC."""

from __future__ import annotations

HTTP = "http"
GRPC = "grpc"

ALIVE = "# alive\n"
"""The answer of /livez: a comment to Prometheus, whose scrape of it then succeeds (`up` is 1)."""


def paths_of(version: str, kind: str) -> tuple[tuple[str, str], ...]:
    """Returns the routes of a version over `kind`, each with its name in logs and its path."""
    if kind == HTTP:
        return tuple((f"{version}/{method}", f"/{version}/{method}") for method in ("score", "score:batch"))
    service = f"/paywarden.scoring.{version}.Scoring"
    return tuple((f"{version}/{method}", f"{service}/{method}") for method in ("Score", "ScoreBatch"))
