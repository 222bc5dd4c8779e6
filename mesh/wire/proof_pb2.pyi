from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Challenge(_message.Message):
    __slots__ = ("protocol", "nonce", "release_id", "leaves")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_ID_FIELD_NUMBER: _ClassVar[int]
    LEAVES_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    nonce: bytes
    release_id: str
    leaves: _containers.RepeatedCompositeFieldContainer[LeafRef]
    def __init__(self, protocol: _Optional[int] = ..., nonce: _Optional[bytes] = ..., release_id: _Optional[str] = ..., leaves: _Optional[_Iterable[_Union[LeafRef, _Mapping]]] = ...) -> None: ...

class LeafRef(_message.Message):
    __slots__ = ("root", "index")
    ROOT_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    root: bytes
    index: int
    def __init__(self, root: _Optional[bytes] = ..., index: _Optional[int] = ...) -> None: ...

class LeafProof(_message.Message):
    __slots__ = ("data", "siblings")
    DATA_FIELD_NUMBER: _ClassVar[int]
    SIBLINGS_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    siblings: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, data: _Optional[bytes] = ..., siblings: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ProofAnswer(_message.Message):
    __slots__ = ("public_key", "time", "leaves", "signature")
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    LEAVES_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    public_key: bytes
    time: int
    leaves: _containers.RepeatedCompositeFieldContainer[LeafProof]
    signature: bytes
    def __init__(self, public_key: _Optional[bytes] = ..., time: _Optional[int] = ..., leaves: _Optional[_Iterable[_Union[LeafProof, _Mapping]]] = ..., signature: _Optional[bytes] = ...) -> None: ...
