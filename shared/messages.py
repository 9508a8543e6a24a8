"""What crosses Redis: frozen, versioned, JSON (so that redis-cli shows it), golden files in tests/unit/golden.

gateway -> worker   Job (stream entry), Abort and Drain (control channel)
worker -> gateway   Frame of Claimed, Delta, Finished, Failed, Released (event channel)
gateway -> gateway  Withdrawn, in a Frame (event channel)
worker -> log       Progress and End of a durable job
worker -> everyone  WorkerInfo (its lease), ModelRecord (the catalogue)
gateway -> people   Trace (for `tokenbus explain`)

Fields that a reader does not know are skipped, so that two releases can share a bus.
"""

import secrets
import socket
from typing import Any, Literal, get_args

import msgspec

VERSION = 1
INLINE_PAYLOAD_BYTES = 64 * 1024  # a larger payload lies once under Keys.payload
EMBEDDING_INPUTS_PER_JOB = 64

FinishReason = Literal["stop", "length"]
Kind = Literal["chat", "completion", "embedding", "rerank", "tokenize", "detokenize"]
GENERATION_KINDS = frozenset({"chat", "completion"})


class Structured(msgspec.Struct, frozen=True):
    """What the reply must look like. `value` by kind: a JSON schema (True: any JSON object), a regular expression over
    the whole reply, the list of replies to choose from, or a grammar (EBNF as in GBNF, or Lark). `param` of the request
    says so."""

    kind: Literal["json", "regex", "choice", "grammar"]
    value: Any
    param: str = "structured_outputs"


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How one sequence is drawn. `seed` is always set: the gateway draws one where the client gave none, and then
    `seeded` is false; an engine for which seeds are slow may draw as it likes."""

    seed: int
    seeded: bool = True
    max_tokens: int | None = None  # None: as many as the context holds
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}  # added to the logits of these token ids
    min_tokens: int = 0  # before these are made, neither end-of-sequence nor a stop token is drawn
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None  # of each token, with so many alternatives
    echo: bool = False  # the prompt comes first, with its logprobs if they are asked for
    structured: Structured | None = None


class Resume(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a sequence goes on: the completion's token ids so far, and what of it its gateway has: characters of text
    and of reasoning, tool calls begun, and characters of their arguments."""

    token_ids: list[int]
    chars_sent: int
    reasoning_sent: int = 0
    calls_sent: int = 0
    arguments_sent: int = 0


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence (or up to 64 inputs to embed, or documents to rank).

    payload  chat: {"messages": [{"role", "content", ...}]}, and where they differ from the defaults
                 "tools": [{"name", "description", "parameters", "strict"}]  (no tools: none may be called)
                 "tool_choice": {"mode": "auto" | "required", "names": [str] | null}  (null: any of them)
                 "parallel_tool_calls": false
                 "template": {...}  (variables for the chat template), "reasoning_effort": str
                 "continue_final_message": true, "add_generation_prompt": false
             completion: {"prompt": str | [int]}
             embedding: {"inputs": [str | [int]], "dimensions": int | null}
             rerank: {"query": str, "documents": [str]}
             tokenize: the payload of a chat or a completion, and "add_special_tokens": bool
             detokenize: {"tokens": [int]}
             or an int: the index into the list under Keys.payload(request)
    deadline in ms since the epoch; attempt counts re-issues, crashes those of them that a worker's death caused.
    logged: of a durable job, the pieces that its log has already, see shared.durable; None of any other.
    """

    id: str
    request: str
    model: str
    kind: Kind
    payload: dict[str, Any] | int
    sampling: SamplingParams
    gateway: str
    deadline: int
    choice: int = 0
    attempt: int = 0
    crashes: int = 0
    job_class: str = msgspec.field(name="class", default="normal")
    resume: Resume | None = None
    trace: str | None = None  # W3C traceparent
    logged: int | None = None
    v: int = VERSION

    @property
    def is_durable(self) -> bool:
        return self.logged is not None


class Usage(msgspec.Struct, frozen=True):
    """In tokens. `cached_tokens` of the prompt were not computed again."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0  # of the completion


class Logprob(msgspec.Struct, frozen=True, array_like=True):
    """A token that could be drawn. `bytes` only where they are not the UTF-8 of its text."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """A token that was drawn, or that the prompt has (None: its first). `top`: the most probable ones, best first."""

    token: str
    logprob: float | None
    bytes: list[int] | None = None
    top: list[Logprob] = []


class ToolCallDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """A piece of a reply's tool call number `index`. Its first has the name; the arguments of all of them together are
    one JSON text."""

    index: int
    name: str = ""
    arguments: str = ""


def add_calls(calls: list[ToolCallDelta], more: list[ToolCallDelta]) -> None:
    """Appends in place; pieces of one call become one."""
    for piece in more:
        last = calls[-1] if calls else None
        if last is not None and last.index == piece.index:
            calls[-1] = ToolCallDelta(last.index, last.name + piece.name, last.arguments + piece.arguments)
        else:
            calls.append(piece)


class Progress(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What was made of one job, the fields being those of Delta, until it is passed on: then the next gathers. Of a
    durable job each step's is a piece of its own, for its log."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = []
    token_ids: list[int] = []
    logprobs: list[TokenLogprob] = []
    prompt_logprobs: list[TokenLogprob] = []
    embeddings: list[str] | None = None
    result: dict[str, Any] | None = None

    def add(self, more: "Progress | Delta") -> None:
        self.text += more.text
        self.reasoning += more.reasoning
        self.token_ids += more.token_ids
        self.logprobs += more.logprobs
        self.prompt_logprobs += more.prompt_logprobs
        if more.tool_calls:
            add_calls(self.tool_calls, more.tool_calls)
        if more.embeddings is not None:  # a second attempt makes all of them again
            self.embeddings = more.embeddings
        if more.result is not None:
            self.result = more.result

    @property
    def is_something(self) -> bool:
        """What a gateway should hear of. Nothing else comes without text or a token."""
        return bool(
            self.text
            or self.token_ids
            or self.logprobs
            or self.reasoning
            or self.tool_calls
            or self.prompt_logprobs
            or self.embeddings is not None
            or self.result is not None
        )


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    job: str
    attempt: int
    worker: str


class Claimed(_Event, frozen=True, kw_only=True, tag="claimed"):
    """The worker holds the job; `entry` is its stream entry. Carries no seq: the attempt's events follow it."""

    stream: str
    entry: str


class Delta(_Event, frozen=True, kw_only=True, tag="delta"):
    """Progress of one job in one step. `text`, `reasoning` and `tool_calls` may lag behind `token_ids` (held back for
    a stop string, a marker or half a character); `logprobs`, where asked for, has an entry for each of them. An echoed
    prompt's logprobs come with the first token, or with the end. `embeddings` are base64 of little-endian float32, one
    per input. `result`: of what is answered at once: rerank {"scores": [float]}, tokenize {"tokens": [int],
    "token_strs": [str]}, detokenize {"prompt": str}."""

    seq: int
    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = []
    token_ids: list[int] = []
    logprobs: list[TokenLogprob] = []
    prompt_logprobs: list[TokenLogprob] = []
    embeddings: list[str] | None = None
    result: dict[str, Any] | None = None


class Finished(_Event, frozen=True, kw_only=True, tag="finished"):
    """`stop`: the stop string that ended it, if one did."""

    seq: int
    reason: FinishReason
    usage: Usage
    stop: str | None = None


class Failed(_Event, frozen=True, kw_only=True, tag="failed"):
    """`code` is one of shared.errors; `retryable`: another worker may do better."""

    seq: int
    code: str
    message: str
    param: str | None = None  # of the request, where one is to blame
    retryable: bool = False


class Released(_Event, frozen=True, kw_only=True, tag="released"):
    """Handed back at a token boundary by a worker that drains."""

    seq: int


class Withdrawn(_Event, frozen=True, kw_only=True, tag="withdrawn"):
    """Of a durable job, to the gateway that owns it: a client of another one wants no more of it."""


Event = Claimed | Delta | Finished | Failed | Released | Withdrawn


class End(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a durable job ended, in its log: finished (`reason` and `usage`, as in Finished), or failed (the rest, as in
    Failed)."""

    reason: FinishReason | None = None
    usage: Usage | None = None
    stop: str | None = None
    code: str | None = None
    message: str = ""
    param: str | None = None


class Frame(msgspec.Struct, frozen=True):
    """One PUBLISH per gateway per engine step."""

    events: list[Event]
    v: int = VERSION


class Abort(msgspec.Struct, frozen=True, tag_field="type", tag="abort"):
    job: str
    attempt: int


class Drain(msgspec.Struct, frozen=True, tag_field="type", tag="drain"):
    pass


Control = Abort | Drain

WorkerState = Literal["ready", "draining"]


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The value of a worker's lease, rewritten at every renewal. `started` in s since the epoch; `step_ms` is what a
    quick one of its last steps took, 0 if it has not made any. `cache_usage`: the part of the memory for keys and
    values that running sequences have; `cache_hit_rate`: the part of the prompts' tokens, lately, that were not
    computed again; None if the engine does not tell. `started_by`: the loader that did, if one did."""

    id: str
    model: str
    names: list[str]
    fingerprint: str
    engine: str
    max_model_len: int
    resumable: bool
    state: WorkerState
    slots: int
    running: int
    tokens_per_s: float
    version: str
    started: float
    step_ms: float = 0.0
    cache_usage: float | None = None
    cache_hit_rate: float | None = None
    started_by: str = ""


class ModelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of a name for 24 h. `last_seen` in s since the epoch, by Redis's clock."""

    model: str
    fingerprint: str
    max_model_len: int
    engine: str
    worker: str
    last_seen: float


LoadState = Literal["failed", "unloaded", "waiting", "loading", "loaded"]
LOAD_STATES: tuple[LoadState, ...] = get_args(LoadState)  # who is furthest is the last


class Loadable(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is loaded when it is asked for. `waiting`: for memory. `progress` (0 to 1) and `eta_seconds` of a
    load are guesses by what the last one took, or by the size of the weights; `error` says why one failed."""

    names: list[str]  # the model's, then its aliases
    state: LoadState = "unloaded"
    progress: float = 0.0
    eta_seconds: float = 0.0
    error: str = ""


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """The value of a loader's lease: what it starts workers for."""

    id: str
    models: list[Loadable]


class Milestone(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something that happened to a job, `at` ms since the epoch by its gateway's clock. Events and their details:

    accepted · queued · claimed {worker, attempt} · first_token · adopted {attempt, tokens} ·
    reissued {why, attempt, crashes, tokens, silent_ms} · resumed ·
    finished {reason, tokens} · failed {code} · cancelled {why}
    """

    at: int
    event: str
    details: dict[str, str | int] = {}


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """The life of one job so far. `jobs` is how many its request has, of which this is number `index`."""

    job: str
    request: str
    model: str
    gateway: str
    index: int
    jobs: int
    deadline: int
    milestones: list[Milestone]
    v: int = VERSION


encode = msgspec.json.Encoder().encode
decode_job = msgspec.json.Decoder(Job).decode
decode_frame = msgspec.json.Decoder(Frame).decode
decode_control = msgspec.json.Decoder(Control).decode
decode_worker = msgspec.json.Decoder(WorkerInfo).decode
decode_offer = msgspec.json.Decoder(Offer).decode
decode_model = msgspec.json.Decoder(ModelRecord).decode
decode_trace = msgspec.json.Decoder(Trace).decode
decode_pieces = msgspec.json.Decoder(list[Progress]).decode
decode_end = msgspec.json.Decoder(End).decode


def new_process_id() -> str:
    """`host-xxxxxxxx`: random per process start, never reused."""
    return f"{socket.gethostname().split('.')[0][:40]}-{secrets.token_hex(4)}"
