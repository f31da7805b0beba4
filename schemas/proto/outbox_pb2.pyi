from paywarden.schemas.proto import scoring_pb2 as _scoring_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OutboxEntry(_message.Message):
    __slots__ = ("request", "response", "decided_time_ms", "vector", "catalogue_digest", "caller", "bundle_digest", "policy_digest", "rollout", "arm", "propensity", "profile_set", "latency_us", "trace")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    DECIDED_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    POLICY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    PROFILE_SET_FIELD_NUMBER: _ClassVar[int]
    LATENCY_US_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    request: _scoring_pb2.ScoreRequest
    response: _scoring_pb2.ScoreResponse
    decided_time_ms: int
    vector: bytes
    catalogue_digest: str
    caller: str
    bundle_digest: bytes
    policy_digest: bytes
    rollout: str
    arm: str
    propensity: float
    profile_set: str
    latency_us: int
    trace: bytes
    def __init__(self, request: _Optional[_Union[_scoring_pb2.ScoreRequest, _Mapping]] = ..., response: _Optional[_Union[_scoring_pb2.ScoreResponse, _Mapping]] = ..., decided_time_ms: _Optional[int] = ..., vector: _Optional[bytes] = ..., catalogue_digest: _Optional[str] = ..., caller: _Optional[str] = ..., bundle_digest: _Optional[bytes] = ..., policy_digest: _Optional[bytes] = ..., rollout: _Optional[str] = ..., arm: _Optional[str] = ..., propensity: _Optional[float] = ..., profile_set: _Optional[str] = ..., latency_us: _Optional[int] = ..., trace: _Optional[bytes] = ...) -> None: ...

class OutboxRecord(_message.Message):
    __slots__ = ("request", "response", "decided_time_ms", "vector", "catalogue_digest", "caller", "bundle_digest", "policy_digest", "rollout", "arm", "propensity", "profile_set", "latency_us", "trace")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    DECIDED_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CALLER_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    POLICY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    PROFILE_SET_FIELD_NUMBER: _ClassVar[int]
    LATENCY_US_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    request: bytes
    response: bytes
    decided_time_ms: int
    vector: bytes
    catalogue_digest: str
    caller: str
    bundle_digest: bytes
    policy_digest: bytes
    rollout: str
    arm: str
    propensity: float
    profile_set: str
    latency_us: int
    trace: bytes
    def __init__(self, request: _Optional[bytes] = ..., response: _Optional[bytes] = ..., decided_time_ms: _Optional[int] = ..., vector: _Optional[bytes] = ..., catalogue_digest: _Optional[str] = ..., caller: _Optional[str] = ..., bundle_digest: _Optional[bytes] = ..., policy_digest: _Optional[bytes] = ..., rollout: _Optional[str] = ..., arm: _Optional[str] = ..., propensity: _Optional[float] = ..., profile_set: _Optional[str] = ..., latency_us: _Optional[int] = ..., trace: _Optional[bytes] = ...) -> None: ...
