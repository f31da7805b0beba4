from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PaymentRecord(_message.Message):
    __slots__ = ("source", "offset", "keys", "label_changes", "attributes")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    LABEL_CHANGES_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    source: int
    offset: int
    keys: _containers.RepeatedScalarFieldContainer[str]
    label_changes: _containers.RepeatedCompositeFieldContainer[LabelChange]
    attributes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, source: _Optional[int] = ..., offset: _Optional[int] = ..., keys: _Optional[_Iterable[str]] = ..., label_changes: _Optional[_Iterable[_Union[LabelChange, _Mapping]]] = ..., attributes: _Optional[_Iterable[int]] = ...) -> None: ...

class LabelChange(_message.Message):
    __slots__ = ("source", "offset", "weight")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    source: int
    offset: int
    weight: int
    def __init__(self, source: _Optional[int] = ..., offset: _Optional[int] = ..., weight: _Optional[int] = ...) -> None: ...
