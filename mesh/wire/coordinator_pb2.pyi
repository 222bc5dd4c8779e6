from mesh.wire import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NodeState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NODE_STATE_UNSPECIFIED: _ClassVar[NodeState]
    FETCHING: _ClassVar[NodeState]
    LOADING: _ClassVar[NodeState]
    READY: _ClassVar[NodeState]
    DRAINING: _ClassVar[NodeState]
NODE_STATE_UNSPECIFIED: NodeState
FETCHING: NodeState
LOADING: NodeState
READY: NodeState
DRAINING: NodeState

class Capacity(_message.Message):
    __slots__ = ("memory_bytes", "disk_bytes", "layers")
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    memory_bytes: int
    disk_bytes: int
    layers: _common_pb2.LayerRange
    def __init__(self, memory_bytes: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., layers: _Optional[_Union[_common_pb2.LayerRange, _Mapping]] = ...) -> None: ...

class OfferRequest(_message.Message):
    __slots__ = ("protocol", "version", "token_secret", "node_id", "name", "incarnation", "capacity", "kernel_id", "kv_tokens", "model", "release_id", "max_sessions", "trust_digest")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_SECRET_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    KERNEL_ID_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    RELEASE_ID_FIELD_NUMBER: _ClassVar[int]
    MAX_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    TRUST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    version: str
    token_secret: bytes
    node_id: str
    name: str
    incarnation: int
    capacity: Capacity
    kernel_id: str
    kv_tokens: int
    model: str
    release_id: str
    max_sessions: int
    trust_digest: bytes
    def __init__(self, protocol: _Optional[int] = ..., version: _Optional[str] = ..., token_secret: _Optional[bytes] = ..., node_id: _Optional[str] = ..., name: _Optional[str] = ..., incarnation: _Optional[int] = ..., capacity: _Optional[_Union[Capacity, _Mapping]] = ..., kernel_id: _Optional[str] = ..., kv_tokens: _Optional[int] = ..., model: _Optional[str] = ..., release_id: _Optional[str] = ..., max_sessions: _Optional[int] = ..., trust_digest: _Optional[bytes] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("release_id", "trust_root", "manifest", "torrent", "layers", "peers", "license_text", "license_notice", "license_policy", "twin_torrent", "catalog_path", "catalog_version")
    RELEASE_ID_FIELD_NUMBER: _ClassVar[int]
    TRUST_ROOT_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    TORRENT_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    LICENSE_TEXT_FIELD_NUMBER: _ClassVar[int]
    LICENSE_NOTICE_FIELD_NUMBER: _ClassVar[int]
    LICENSE_POLICY_FIELD_NUMBER: _ClassVar[int]
    TWIN_TORRENT_FIELD_NUMBER: _ClassVar[int]
    CATALOG_PATH_FIELD_NUMBER: _ClassVar[int]
    CATALOG_VERSION_FIELD_NUMBER: _ClassVar[int]
    release_id: str
    trust_root: bytes
    manifest: bytes
    torrent: bytes
    layers: _common_pb2.LayerRange
    peers: _containers.RepeatedCompositeFieldContainer[_common_pb2.Endpoint]
    license_text: bytes
    license_notice: bytes
    license_policy: bytes
    twin_torrent: bytes
    catalog_path: str
    catalog_version: int
    def __init__(self, release_id: _Optional[str] = ..., trust_root: _Optional[bytes] = ..., manifest: _Optional[bytes] = ..., torrent: _Optional[bytes] = ..., layers: _Optional[_Union[_common_pb2.LayerRange, _Mapping]] = ..., peers: _Optional[_Iterable[_Union[_common_pb2.Endpoint, _Mapping]]] = ..., license_text: _Optional[bytes] = ..., license_notice: _Optional[bytes] = ..., license_policy: _Optional[bytes] = ..., twin_torrent: _Optional[bytes] = ..., catalog_path: _Optional[str] = ..., catalog_version: _Optional[int] = ...) -> None: ...

class Acceptance(_message.Message):
    __slots__ = ("node_id", "incarnation", "release_id", "layers", "memory_bytes", "license_acceptance", "revocations_version")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    RELEASE_ID_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    LICENSE_ACCEPTANCE_FIELD_NUMBER: _ClassVar[int]
    REVOCATIONS_VERSION_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    incarnation: int
    release_id: str
    layers: _common_pb2.LayerRange
    memory_bytes: int
    license_acceptance: bytes
    revocations_version: int
    def __init__(self, node_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., release_id: _Optional[str] = ..., layers: _Optional[_Union[_common_pb2.LayerRange, _Mapping]] = ..., memory_bytes: _Optional[int] = ..., license_acceptance: _Optional[bytes] = ..., revocations_version: _Optional[int] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("node_id", "incarnation", "state", "progress", "stage", "swarm", "kv_tokens_free", "sessions", "steps_computed", "fetched_bytes", "redundant_bytes")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    SWARM_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_FREE_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    STEPS_COMPUTED_FIELD_NUMBER: _ClassVar[int]
    FETCHED_BYTES_FIELD_NUMBER: _ClassVar[int]
    REDUNDANT_BYTES_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    incarnation: int
    state: NodeState
    progress: float
    stage: _common_pb2.Endpoint
    swarm: _common_pb2.Endpoint
    kv_tokens_free: int
    sessions: int
    steps_computed: int
    fetched_bytes: int
    redundant_bytes: int
    def __init__(self, node_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., state: _Optional[_Union[NodeState, str]] = ..., progress: _Optional[float] = ..., stage: _Optional[_Union[_common_pb2.Endpoint, _Mapping]] = ..., swarm: _Optional[_Union[_common_pb2.Endpoint, _Mapping]] = ..., kv_tokens_free: _Optional[int] = ..., sessions: _Optional[int] = ..., steps_computed: _Optional[int] = ..., fetched_bytes: _Optional[int] = ..., redundant_bytes: _Optional[int] = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("seconds", "peers", "is_superseded", "catalog_version")
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    IS_SUPERSEDED_FIELD_NUMBER: _ClassVar[int]
    CATALOG_VERSION_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    peers: _containers.RepeatedCompositeFieldContainer[_common_pb2.Endpoint]
    is_superseded: bool
    catalog_version: int
    def __init__(self, seconds: _Optional[float] = ..., peers: _Optional[_Iterable[_Union[_common_pb2.Endpoint, _Mapping]]] = ..., is_superseded: bool = ..., catalog_version: _Optional[int] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("node_id", "incarnation")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    incarnation: int
    def __init__(self, node_id: _Optional[str] = ..., incarnation: _Optional[int] = ...) -> None: ...

class LeaveReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AnnounceRequest(_message.Message):
    __slots__ = ("protocol", "token_secret", "release_id", "swarm", "peer_id")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    TOKEN_SECRET_FIELD_NUMBER: _ClassVar[int]
    RELEASE_ID_FIELD_NUMBER: _ClassVar[int]
    SWARM_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    token_secret: bytes
    release_id: str
    swarm: _common_pb2.Endpoint
    peer_id: str
    def __init__(self, protocol: _Optional[int] = ..., token_secret: _Optional[bytes] = ..., release_id: _Optional[str] = ..., swarm: _Optional[_Union[_common_pb2.Endpoint, _Mapping]] = ..., peer_id: _Optional[str] = ...) -> None: ...

class AnnounceReply(_message.Message):
    __slots__ = ("seconds", "peers")
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    peers: _containers.RepeatedCompositeFieldContainer[_common_pb2.Endpoint]
    def __init__(self, seconds: _Optional[float] = ..., peers: _Optional[_Iterable[_Union[_common_pb2.Endpoint, _Mapping]]] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("protocol", "token_secret", "release", "trust_digest")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    TOKEN_SECRET_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    TRUST_DIGEST_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    token_secret: bytes
    release: str
    trust_digest: bytes
    def __init__(self, protocol: _Optional[int] = ..., token_secret: _Optional[bytes] = ..., release: _Optional[str] = ..., trust_digest: _Optional[bytes] = ...) -> None: ...

class ReleaseReply(_message.Message):
    __slots__ = ("trust_root", "manifest", "torrent", "license_text", "peers", "catalog_path", "license_notice", "license_policy", "twin_torrent")
    TRUST_ROOT_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    TORRENT_FIELD_NUMBER: _ClassVar[int]
    LICENSE_TEXT_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    CATALOG_PATH_FIELD_NUMBER: _ClassVar[int]
    LICENSE_NOTICE_FIELD_NUMBER: _ClassVar[int]
    LICENSE_POLICY_FIELD_NUMBER: _ClassVar[int]
    TWIN_TORRENT_FIELD_NUMBER: _ClassVar[int]
    trust_root: bytes
    manifest: bytes
    torrent: bytes
    license_text: bytes
    peers: _containers.RepeatedCompositeFieldContainer[_common_pb2.Endpoint]
    catalog_path: str
    license_notice: bytes
    license_policy: bytes
    twin_torrent: bytes
    def __init__(self, trust_root: _Optional[bytes] = ..., manifest: _Optional[bytes] = ..., torrent: _Optional[bytes] = ..., license_text: _Optional[bytes] = ..., peers: _Optional[_Iterable[_Union[_common_pb2.Endpoint, _Mapping]]] = ..., catalog_path: _Optional[str] = ..., license_notice: _Optional[bytes] = ..., license_policy: _Optional[bytes] = ..., twin_torrent: _Optional[bytes] = ...) -> None: ...

class CatalogFileRequest(_message.Message):
    __slots__ = ("token_secret", "node_id", "incarnation", "name")
    TOKEN_SECRET_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    token_secret: bytes
    node_id: str
    incarnation: int
    name: str
    def __init__(self, token_secret: _Optional[bytes] = ..., node_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., name: _Optional[str] = ...) -> None: ...

class CatalogFileReply(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class FleetRequest(_message.Message):
    __slots__ = ("protocol", "token_secret", "release")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    TOKEN_SECRET_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    token_secret: bytes
    release: str
    def __init__(self, protocol: _Optional[int] = ..., token_secret: _Optional[bytes] = ..., release: _Optional[str] = ...) -> None: ...

class FleetReply(_message.Message):
    __slots__ = ("release_id", "manifest", "nodes")
    RELEASE_ID_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    release_id: str
    manifest: bytes
    nodes: _containers.RepeatedCompositeFieldContainer[FleetNode]
    def __init__(self, release_id: _Optional[str] = ..., manifest: _Optional[bytes] = ..., nodes: _Optional[_Iterable[_Union[FleetNode, _Mapping]]] = ...) -> None: ...

class FleetNode(_message.Message):
    __slots__ = ("node_id", "name", "layers", "state", "stage", "license_acceptance")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    LICENSE_ACCEPTANCE_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    name: str
    layers: _common_pb2.LayerRange
    state: NodeState
    stage: _common_pb2.Endpoint
    license_acceptance: bytes
    def __init__(self, node_id: _Optional[str] = ..., name: _Optional[str] = ..., layers: _Optional[_Union[_common_pb2.LayerRange, _Mapping]] = ..., state: _Optional[_Union[NodeState, str]] = ..., stage: _Optional[_Union[_common_pb2.Endpoint, _Mapping]] = ..., license_acceptance: _Optional[bytes] = ...) -> None: ...
