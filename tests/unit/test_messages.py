"""Golden files of everything that crosses Redis: a field that vanishes or changes its name is noticed here."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared.messages import (
    Abort,
    Claimed,
    Control,
    Delta,
    Drain,
    End,
    Failed,
    Finished,
    Frame,
    Job,
    Loadable,
    Logprob,
    Milestone,
    ModelRecord,
    Offer,
    Progress,
    Released,
    Resume,
    SamplingParams,
    Structured,
    TokenLogprob,
    ToolCallDelta,
    Trace,
    Usage,
    Withdrawn,
    WorkerInfo,
    decode_control,
    decode_frame,
    decode_job,
    encode,
    new_process_id,
)

GOLDEN = Path(__file__).parent / "golden"
OF: Any = {"job": "chatcmpl-1-0", "attempt": 1, "worker": "host-ab12"}
EXAMPLES: dict[str, tuple[Any, Any]] = {
    "job": (
        Job(
            id="chatcmpl-1-0",
            request="chatcmpl-1",
            model="m",
            kind="chat",
            payload={"messages": [{"role": "user", "content": "hello"}]},
            sampling=SamplingParams(
                seed=7,
                max_tokens=5,
                temperature=0.5,
                top_p=0.9,
                top_k=40,
                min_p=0.1,
                stop=("END",),
                presence_penalty=0.1,
                frequency_penalty=0.2,
                repetition_penalty=1.1,
                logit_bias={5: -100.0},
                min_tokens=1,
                ignore_eos=True,
                stop_token_ids=(9,),
                logprobs=2,
                echo=True,
                structured=Structured("json", {"type": "object"}),
            ),
            gateway="host-cd34",
            deadline=1_800_000_000_000,
            choice=2,
            attempt=1,
            crashes=1,
            job_class="high",
            resume=Resume([1, 2, 3], 9, reasoning_sent=4, calls_sent=1, arguments_sent=7),
            trace="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ),
        Job,
    ),
    "job_with_payload_aside": (
        Job(
            id="cmpl-1-0",
            request="cmpl-1",
            model="m",
            kind="completion",
            payload=0,
            sampling=SamplingParams(seed=7),
            gateway="host-cd34",
            deadline=1_800_000_000_000,
            logged=3,
        ),
        Job,
    ),
    "logged_pieces": ([Progress(text="hi", token_ids=[5]), Progress(reasoning="hm", token_ids=[6])], list[Progress]),
    "logged_end": (End(reason="stop", usage=Usage(3, 2), stop="END"), End),
    "logged_failure": (End(code="deadline_exceeded", message="too late", param="input"), End),
    "frame": (
        Frame(
            [
                Claimed(stream="tokenbus:jobs:{m}:normal", entry="1-0", **OF),
                Delta(seq=0, text="hi", token_ids=[5, 6], **OF),
                Delta(seq=1, embeddings=["AACAPw=="], **OF),
                Delta(
                    seq=2,
                    reasoning="hm",
                    tool_calls=[ToolCallDelta(0, "f", "{"), ToolCallDelta(0, arguments="}")],
                    token_ids=[7],
                    logprobs=[TokenLogprob("h", -0.5, top=[Logprob("h", -0.5), Logprob("\ufffd", -1.5, [226])])],
                    prompt_logprobs=[TokenLogprob("a", None)],
                    **OF,
                ),
                Delta(seq=3, result={"scores": [0.5]}, **OF),
                Finished(seq=4, reason="stop", usage=Usage(3, 2, 1, 1), stop="END", **OF),
                Failed(seq=5, code="engine_error", message="broke", param="prompt", retryable=True, **OF),
                Released(seq=6, **OF),
                Withdrawn(**OF),
            ]
        ),
        Frame,
    ),
    "abort": (Abort("chatcmpl-1-0", 1), Control),
    "drain": (Drain(), Control),
    "worker_info": (
        WorkerInfo(
            id="host-ab12",
            model="m",
            names=["m", "alias"],
            fingerprint="f00d",
            engine="echo",
            max_model_len=8192,
            resumable=True,
            state="ready",
            slots=4,
            running=1,
            tokens_per_s=12.5,
            version="0.1.0",
            started=1_800_000_000.0,
            step_ms=8.25,
            cache_usage=0.4,
            cache_hit_rate=0.125,
            started_by="host-cd34",
        ),
        WorkerInfo,
    ),
    "offer": (
        Offer(
            id="host-cd34",
            models=[
                Loadable(names=["m", "m:sql"], state="loading", progress=0.25, eta_seconds=31.0),
                Loadable(names=["n"], state="failed", eta_seconds=9.5, error="no such file"),
            ],
        ),
        Offer,
    ),
    "model_record": (
        ModelRecord(
            model="m", fingerprint="f00d", max_model_len=8192, engine="echo", worker="host-ab12", last_seen=1.5
        ),
        ModelRecord,
    ),
    "trace": (
        Trace(
            job="chatcmpl-1-0",
            request="chatcmpl-1",
            model="m",
            gateway="host-cd34",
            index=0,
            jobs=2,
            deadline=1_800_000_600_000,
            milestones=[
                Milestone(1_800_000_000_000, "accepted"),
                Milestone(1_800_000_000_004, "claimed", {"worker": "host-ab12", "attempt": 0}),
            ],
        ),
        Trace,
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_message_is_what_the_golden_file_says(name: str) -> None:
    message, type_ = EXAMPLES[name]
    golden = (GOLDEN / f"{name}.json").read_bytes()
    assert msgspec.json.format(encode(message), indent=2) == golden.rstrip()
    assert msgspec.json.decode(golden, type=type_) == message


def test_fields_of_a_later_release_are_skipped() -> None:
    job, _ = EXAMPLES["job"]
    later = msgspec.json.decode(encode(job)) | {"tomorrow": 1}
    assert decode_job(encode(later)) == job


def test_garbage_is_refused_at_the_border() -> None:
    for decode in (decode_job, decode_frame, decode_control):
        with pytest.raises(msgspec.MsgspecError):
            decode(b'{"type":"unheard-of"}')


def test_process_ids_are_never_the_same() -> None:
    assert new_process_id() != new_process_id()
