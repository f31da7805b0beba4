"""Asks a server through gRPC's own health and reflection packages: `python -m tests.clients.standard_services TARGET`.

It runs as a process of its own: those packages and ours declare the same messages, and one process cannot load them
twice.
"""

from __future__ import annotations

import json
import sys

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


def main() -> None:
    """Print the answers as one JSON object."""
    with grpc.insecure_channel(sys.argv[1]) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = DescriptorPool(database)
        watch = health.Watch(health_pb2.HealthCheckRequest(service="paywarden.scoring.v1.Scoring"))
        first = next(iter(watch)).status
        watch.cancel()
        try:
            health.Check(health_pb2.HealthCheckRequest(service="nobody"))
            unknown = "OK"
        except grpc.RpcError as error:
            unknown = error.code().name
        found = {
            "check": health.Check(health_pb2.HealthCheckRequest()).status,
            "watch": first,
            "unknown": unknown,
            "services": sorted(database.get_services()),
            "methods": [m.name for m in pool.FindServiceByName("paywarden.scoring.v1.Scoring").methods],
            "fields": [f.name for f in pool.FindMessageTypeByName("paywarden.scoring.v1.ScoreRequest").fields][:3],
        }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
