from mesh.wire import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Frame(_message.Message):
    __slots__ = ("hello", "open", "opened", "failed", "steps", "tokens", "close", "credit", "scores", "mask")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    open: OpenSession
    opened: SessionOpened
    failed: SessionFailed
    steps: Steps
    tokens: Tokens
    close: CloseSession
    credit: Credit
    scores: PromptScores
    mask: TokenMask
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., open: _Optional[_Union[OpenSession, _Mapping]] = ..., opened: _Optional[_Union[SessionOpened, _Mapping]] = ..., failed: _Optional[_Union[SessionFailed, _Mapping]] = ..., steps: _Optional[_Union[Steps, _Mapping]] = ..., tokens: _Optional[_Union[Tokens, _Mapping]] = ..., close: _Optional[_Union[CloseSession, _Mapping]] = ..., credit: _Optional[_Union[Credit, _Mapping]] = ..., scores: _Optional[_Union[PromptScores, _Mapping]] = ..., mask: _Optional[_Union[TokenMask, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "sender", "incarnation", "release_id", "kernel_id", "layers", "credits")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    RELEASE_ID_FIELD_NUMBER: _ClassVar[int]
    KERNEL_ID_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    sender: str
    incarnation: int
    release_id: str
    kernel_id: str
    layers: _common_pb2.LayerRange
    credits: int
    def __init__(self, protocol: _Optional[int] = ..., sender: _Optional[str] = ..., incarnation: _Optional[int] = ..., release_id: _Optional[str] = ..., kernel_id: _Optional[str] = ..., layers: _Optional[_Union[_common_pb2.LayerRange, _Mapping]] = ..., credits: _Optional[int] = ...) -> None: ...

class RouteStage(_message.Message):
    __slots__ = ("node_id", "endpoint", "layers", "incarnation")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    endpoint: _common_pb2.Endpoint
    layers: _common_pb2.LayerRange
    incarnation: int
    def __init__(self, node_id: _Optional[str] = ..., endpoint: _Optional[_Union[_common_pb2.Endpoint, _Mapping]] = ..., layers: _Optional[_Union[_common_pb2.LayerRange, _Mapping]] = ..., incarnation: _Optional[int] = ...) -> None: ...

class OpenSession(_message.Message):
    __slots__ = ("session", "epoch", "route", "stage_index", "max_tokens", "sampling", "request_id", "dtype", "return_logits", "token_ids", "prompt_tokens", "prompt_logprobs", "masked")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    STAGE_INDEX_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    RETURN_LOGITS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    MASKED_FIELD_NUMBER: _ClassVar[int]
    session: str
    epoch: int
    route: _containers.RepeatedCompositeFieldContainer[RouteStage]
    stage_index: int
    max_tokens: int
    sampling: SamplingParams
    request_id: str
    dtype: _common_pb2.DType
    return_logits: bool
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    prompt_tokens: int
    prompt_logprobs: int
    masked: bool
    def __init__(self, session: _Optional[str] = ..., epoch: _Optional[int] = ..., route: _Optional[_Iterable[_Union[RouteStage, _Mapping]]] = ..., stage_index: _Optional[int] = ..., max_tokens: _Optional[int] = ..., sampling: _Optional[_Union[SamplingParams, _Mapping]] = ..., request_id: _Optional[str] = ..., dtype: _Optional[_Union[_common_pb2.DType, str]] = ..., return_logits: bool = ..., token_ids: _Optional[_Iterable[int]] = ..., prompt_tokens: _Optional[int] = ..., prompt_logprobs: _Optional[int] = ..., masked: bool = ...) -> None: ...

class SamplingParams(_message.Message):
    __slots__ = ("temperature", "top_p", "seed", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "bias_ids", "biases", "top_logprobs")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    BIAS_IDS_FIELD_NUMBER: _ClassVar[int]
    BIASES_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    seed: int
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    bias_ids: _containers.RepeatedScalarFieldContainer[int]
    biases: _containers.RepeatedScalarFieldContainer[float]
    top_logprobs: int
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., bias_ids: _Optional[_Iterable[int]] = ..., biases: _Optional[_Iterable[float]] = ..., top_logprobs: _Optional[int] = ...) -> None: ...

class Logprobs(_message.Message):
    __slots__ = ("logprob", "top_ids", "top_logprobs")
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    logprob: float
    top_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, logprob: _Optional[float] = ..., top_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class SessionOpened(_message.Message):
    __slots__ = ("session", "epoch")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    session: str
    epoch: int
    def __init__(self, session: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class SessionFailed(_message.Message):
    __slots__ = ("session", "epoch", "reason", "message", "node_id", "lost_node_id")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REASON_UNSPECIFIED: _ClassVar[SessionFailed.Reason]
        NO_CAPACITY: _ClassVar[SessionFailed.Reason]
        BAD_STEP: _ClassVar[SessionFailed.Reason]
        PEER_LOST: _ClassVar[SessionFailed.Reason]
        STALE_ROUTE: _ClassVar[SessionFailed.Reason]
        INTERNAL: _ClassVar[SessionFailed.Reason]
    REASON_UNSPECIFIED: SessionFailed.Reason
    NO_CAPACITY: SessionFailed.Reason
    BAD_STEP: SessionFailed.Reason
    PEER_LOST: SessionFailed.Reason
    STALE_ROUTE: SessionFailed.Reason
    INTERNAL: SessionFailed.Reason
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    LOST_NODE_ID_FIELD_NUMBER: _ClassVar[int]
    session: str
    epoch: int
    reason: SessionFailed.Reason
    message: str
    node_id: str
    lost_node_id: str
    def __init__(self, session: _Optional[str] = ..., epoch: _Optional[int] = ..., reason: _Optional[_Union[SessionFailed.Reason, str]] = ..., message: _Optional[str] = ..., node_id: _Optional[str] = ..., lost_node_id: _Optional[str] = ...) -> None: ...

class CloseSession(_message.Message):
    __slots__ = ("session", "epoch")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    session: str
    epoch: int
    def __init__(self, session: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("session", "epoch", "step_id", "position", "num_tokens", "sample", "token_ids", "first_row", "num_rows")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FIRST_ROW_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    session: str
    epoch: int
    step_id: int
    position: int
    num_tokens: int
    sample: bool
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    first_row: int
    num_rows: int
    def __init__(self, session: _Optional[str] = ..., epoch: _Optional[int] = ..., step_id: _Optional[int] = ..., position: _Optional[int] = ..., num_tokens: _Optional[int] = ..., sample: bool = ..., token_ids: _Optional[_Iterable[int]] = ..., first_row: _Optional[int] = ..., num_rows: _Optional[int] = ...) -> None: ...

class Steps(_message.Message):
    __slots__ = ("dtype", "hidden_size", "steps", "payload")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    dtype: _common_pb2.DType
    hidden_size: int
    steps: _containers.RepeatedCompositeFieldContainer[Step]
    payload: bytes
    def __init__(self, dtype: _Optional[_Union[_common_pb2.DType, str]] = ..., hidden_size: _Optional[int] = ..., steps: _Optional[_Iterable[_Union[Step, _Mapping]]] = ..., payload: _Optional[bytes] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("session", "epoch", "step_id", "position", "token_id", "logits", "logprobs")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    session: str
    epoch: int
    step_id: int
    position: int
    token_id: int
    logits: bytes
    logprobs: Logprobs
    def __init__(self, session: _Optional[str] = ..., epoch: _Optional[int] = ..., step_id: _Optional[int] = ..., position: _Optional[int] = ..., token_id: _Optional[int] = ..., logits: _Optional[bytes] = ..., logprobs: _Optional[_Union[Logprobs, _Mapping]] = ...) -> None: ...

class TokenMask(_message.Message):
    __slots__ = ("session", "epoch", "position", "allowed")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    session: str
    epoch: int
    position: int
    allowed: bytes
    def __init__(self, session: _Optional[str] = ..., epoch: _Optional[int] = ..., position: _Optional[int] = ..., allowed: _Optional[bytes] = ...) -> None: ...

class PromptScores(_message.Message):
    __slots__ = ("session", "epoch", "position", "logprobs")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    session: str
    epoch: int
    position: int
    logprobs: _containers.RepeatedCompositeFieldContainer[Logprobs]
    def __init__(self, session: _Optional[str] = ..., epoch: _Optional[int] = ..., position: _Optional[int] = ..., logprobs: _Optional[_Iterable[_Union[Logprobs, _Mapping]]] = ...) -> None: ...

class Tokens(_message.Message):
    __slots__ = ("tokens",)
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[Token]
    def __init__(self, tokens: _Optional[_Iterable[_Union[Token, _Mapping]]] = ...) -> None: ...

class Credit(_message.Message):
    __slots__ = ("frames",)
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    frames: int
    def __init__(self, frames: _Optional[int] = ...) -> None: ...
