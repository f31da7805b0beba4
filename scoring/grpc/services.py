"""Answers gRPC's standard services: health, and reflection, which lists the services and methods for tools.

    message in ─► GrpcHealth.check, Reflection.answer, … ─► message out, or a Refusal

Neither knows connections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FileDescriptor
from google.protobuf.message import DecodeError

from paywarden.schemas.payment_fields import TABLE_ALONE, PaymentFields
from paywarden.schemas.proto import health_pb2, reflection_pb2, reflection_v1alpha_pb2
from paywarden.schemas.request_proto import request_file
from paywarden.scoring.engine.batching.batcher import INVALID_ARGUMENT, Refusal
from paywarden.scoring.grpc.messages import CODES

NOT_FOUND = "not_found"

SCORING = "paywarden.scoring.v1.Scoring"
HEALTH = "grpc.health.v1.Health"
# The same messages under two names: some tools ask for the newer first, others know only the older.
REFLECTIONS = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")

_OTHER_FILES: Sequence[FileDescriptor] = (
    health_pb2.DESCRIPTOR,
    reflection_pb2.DESCRIPTOR,
    reflection_v1alpha_pb2.DESCRIPTOR,
)

_UNKNOWN_SERVICE = Refusal(NOT_FOUND, "no such service")
_NOT_A_MESSAGE = Refusal(INVALID_ARGUMENT, "not a protobuf message of this method")
_STATUS = health_pb2.HealthCheckResponse
_Status = health_pb2.HealthCheckResponse.ServingStatus
SERVICE_UNKNOWN = _STATUS.SERVICE_UNKNOWN


class GrpcHealth:
    """grpc.health.v1.Health. The server as a whole and the scoring service always have the same status."""

    def __init__(self, is_serving: Callable[[], bool]) -> None:
        self._is_serving = is_serving
        self._names = ("", SCORING)

    def service_of(self, message: bytes) -> str | Refusal:
        """Returns the service that a request names."""
        try:
            return health_pb2.HealthCheckRequest.FromString(message).service
        except DecodeError:
            return _NOT_A_MESSAGE

    def status_of(self, service: str) -> _Status:
        """Returns a service's status now."""
        if service not in self._names:
            return SERVICE_UNKNOWN
        return _STATUS.SERVING if self._is_serving() else _STATUS.NOT_SERVING

    def check(self, message: bytes) -> bytes | Refusal:
        """Answer a message of Check."""
        service = self.service_of(message)
        if isinstance(service, Refusal):
            return service
        status = self.status_of(service)
        return _UNKNOWN_SERVICE if status == SERVICE_UNKNOWN else render_status(status)

    def list_all(self, message: bytes) -> bytes | Refusal:
        """Answer a message of List."""
        try:
            health_pb2.HealthListRequest.FromString(message)
        except DecodeError:
            return _NOT_A_MESSAGE
        answer = health_pb2.HealthListResponse()
        for name in self._names:
            answer.statuses[name].status = self.status_of(name)
        return answer.SerializeToString()


def render_status(status: _Status) -> bytes:
    """Returns a status as a message of Check and Watch."""
    return _STATUS(status=status).SerializeToString()


class Reflection:
    """grpc.reflection, v1 and v1alpha. It shows the .proto files of the public services and no internal ones."""

    def __init__(self, fields: PaymentFields = TABLE_ALONE) -> None:
        """`fields` are those of a request in this deployment."""
        files = (request_file(fields), *_OTHER_FILES)
        self._files: Mapping[str, bytes] = {file.name: file.serialized_pb for file in files}
        self._file_of: Mapping[str, str] = {name: file.name for file in files for name in _symbols(file)}
        self._messages = frozenset(
            message.full_name for file in files for message in file.message_types_by_name.values()
        )
        self._list = reflection_pb2.ListServiceResponse(
            service=[reflection_pb2.ServiceResponse(name=name) for name in (SCORING, HEALTH, *REFLECTIONS)]
        )

    def answer(self, message: bytes) -> bytes | Refusal:
        """Answer one message of ServerReflectionInfo."""
        try:
            request = reflection_pb2.ServerReflectionRequest.FromString(message)
        except DecodeError:
            return _NOT_A_MESSAGE
        answer = reflection_pb2.ServerReflectionResponse(valid_host=request.host, original_request=request)
        self._fill(answer, request)
        return answer.SerializeToString()

    def _fill(
        self, answer: reflection_pb2.ServerReflectionResponse, request: reflection_pb2.ServerReflectionRequest
    ) -> None:
        match request.WhichOneof("message_request"):
            case "list_services":
                answer.list_services_response.CopyFrom(self._list)
            case "file_by_filename":
                self._fill_file(answer, request.file_by_filename)
            case "file_containing_symbol":
                self._fill_file(answer, self._file_of.get(request.file_containing_symbol, ""))
            case "all_extension_numbers_of_type" if request.all_extension_numbers_of_type in self._messages:
                # These files are all proto3, which has no extensions.
                answer.all_extension_numbers_response.base_type_name = request.all_extension_numbers_of_type
            case "all_extension_numbers_of_type" | "file_containing_extension":
                _fill_error(answer, NOT_FOUND, "no such type or extension")
            case _:
                _fill_error(answer, INVALID_ARGUMENT, "nothing is asked")

    def _fill_file(self, answer: reflection_pb2.ServerReflectionResponse, name: str) -> None:
        content = self._files.get(name)
        if content is None:
            _fill_error(answer, NOT_FOUND, "no such file or symbol")
        else:
            # One file is enough, since none of them imports another.
            answer.file_descriptor_response.file_descriptor_proto.append(content)


def _fill_error(answer: reflection_pb2.ServerReflectionResponse, code: str, message: str) -> None:
    answer.error_response.error_code = CODES[code]
    answer.error_response.error_message = message


def _symbols(file: FileDescriptor) -> Iterator[str]:
    for service in file.services_by_name.values():
        yield service.full_name
        yield from (method.full_name for method in service.methods)
    for message in file.message_types_by_name.values():
        yield from _message_symbols(message)
    for enum in file.enum_types_by_name.values():
        yield from _enum_symbols(enum)


def _message_symbols(message: Descriptor) -> Iterator[str]:
    yield message.full_name
    yield from (field.full_name for field in message.fields)
    yield from (oneof.full_name for oneof in message.oneofs)
    for nested in message.nested_types:
        yield from _message_symbols(nested)
    for enum in message.enum_types:
        yield from _enum_symbols(enum)


def _enum_symbols(enum: EnumDescriptor) -> Iterator[str]:
    yield enum.full_name
    # As in C++, the values of an enum are in its enclosing scope.
    scope = enum.full_name.rpartition(".")[0]
    yield from (f"{scope}.{value.name}" for value in enum.values)
