"""A model whose layers are dealt out to several processes, one for each GPU, which compute every step together.

The first process is the worker's own: it alone schedules and draws tokens, and tells the others what it does with its
model. Numbers go to them through pipes; the tokens that were drawn last, which the first one does not wait for either,
from GPU to GPU. A process that fails takes all of them with it: what they were computing is continued by other workers.
"""

import atexit
import multiprocessing
import os
import pickle
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from shared.errors import StartupError
from shared.garbage import spare_what_is_loaded
from shared.logging import get_logger, set_up_logging
from worker.engines.checkpoint import Checkpoint
from worker.engines.kv_cache import KeyValueCache
from worker.engines.options import EngineOptions
from worker.engines.packed_model import NotPackableError, PackedModel
from worker.engines.processes import deaf, end
from worker.engines.staging import Step, Work
from worker.engines.step_cost import Cost

log = get_logger(__name__)

HOST = "127.0.0.1"  # of all that the processes say to each other
# What keeps one of them from loading most likely keeps the first from it too, which has the better way to say so.
FIRST_SAYS_WHY_S = 30.0
GONE_WITHIN_S = 1.0  # it is seen by a step that fails before it is seen by who waits for it
NO_ROOM_FOR_PART = "a GPU has no memory for a step beside its part of the weights; try a larger --tensor-parallel-size"


class Group:
    """The other processes, seen from the first."""

    def __init__(self, options: EngineOptions, device: torch.device) -> None:
        """Starts them, and returns when all are there; they load the model, as the first should do then."""
        size = options.tensor_parallel_size
        self.size = size
        listening = socket.create_server((HOST, 0))
        port = listening.getsockname()[1]
        spawn = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []
        for rank in range(1, size):
            theirs, ours = spawn.Pipe(duplex=False)
            arguments = options, device.type, rank, port, theirs
            self._processes.append(spawn.Process(target=_follow, args=arguments, name=f"rank-{rank}", daemon=True))
            with deaf():
                self._processes[-1].start()
            theirs.close()
            self._pipes.append(ours)
        self._is_ending, self._only_one = threading.Event(), threading.Lock()
        atexit.register(self._let_go)  # before multiprocessing waits for them
        threading.Thread(target=self._watch, name="ranks", daemon=True).start()
        _join(device.type, 0, size, port, listening)

    def tell(self, name: str, *arguments: Any) -> None:
        """To call a method of Follower."""
        message = pickle.dumps((name, arguments), protocol=5)
        try:
            for pipe in self._pipes:
                pipe.send_bytes(message)
        except OSError:
            self.fail()

    def fail(self) -> None:
        """What is being computed, and cannot be any more. An exception that nobody else is the cause of is logged."""
        if not self._is_gone(GONE_WITHIN_S):
            log.exception("a step failed")
            end("the processes of this model are not in step any more")

    def _watch(self) -> None:
        """Without one of them, the others would wait for its part for ever."""
        self._is_gone(None)

    def _is_gone(self, timeout: float | None) -> bool:
        """Whether one of them ends meanwhile, and this one then too."""
        gone = wait([process.sentinel for process in self._processes], timeout)
        with self._only_one:  # asks for exit codes
            for process in self._processes:
                if process.sentinel in gone and not self._is_ending.is_set():
                    process.join()
                    end(f"a process of this model has ended: {process.name} ({process.exitcode})")
        return bool(gone)

    def _let_go(self) -> None:
        self._is_ending.set()
        for pipe in self._pipes:
            pipe.close()


class DealtOutModel:
    """A PackedModel as the scheduler sees it, with its other parts elsewhere."""

    def __init__(self, model: PackedModel, group: Group) -> None:
        self._model = model
        self._group = group
        self.device = model.device
        self.max_model_len = model.max_model_len
        self.vocabulary = model.vocabulary

    @property
    def bytes_per_token(self) -> Mapping[torch.device, int]:
        """On the first GPU; the others have as many. On a CPU, of all processes."""
        processes = 1 if self.device.type == "cuda" else self._group.size
        return {device: size * processes for device, size in self._model.bytes_per_token.items()}

    @property
    def has_graphs(self) -> bool:
        return self._model.has_graphs

    def measure(self, tokens: int, rows: int, use: Callable[[Tensor], object] | None = None) -> Cost:
        """As PackedModel.measure. Raises StartupError where there is no room: the others may have had it, and wait in
        the middle of the step."""
        self._group.tell("measure", tokens, rows)
        try:
            return self._model.measure(tokens, rows, use)
        except torch.OutOfMemoryError:
            raise StartupError(NO_ROOM_FOR_PART) from None

    def lacking(self) -> int:
        """Bytes, that another GPU has less of than the first."""
        self._group.tell("compare")
        return torch.cuda.mem_get_info(self.device)[0] - _least_free(self.device)

    def hold(self, tokens: int) -> KeyValueCache:
        self._group.tell("hold", tokens)
        return self._model.hold(tokens, lambda *places: self._group.tell("copy", *places))

    def capture(self, most_rows: int, most_tokens: int, progress: Any) -> None:
        self._group.tell("capture", most_rows, most_tokens)
        self._model.capture(most_rows, most_tokens, progress)

    @torch.inference_mode()
    def forward(self, work: Sequence[Work], wanted: Sequence[int], drawn: Tensor | None = None) -> Tensor:
        """As PackedModel.forward."""
        step = self._model.plan(work, wanted)
        count = None if drawn is None else len(drawn)
        self._group.tell("run", step, count)
        try:
            if drawn is not None:
                dist.broadcast(drawn, 0)
            return self._model.run(step, drawn)
        except Exception:  # out of memory, say: the others wait in the middle of a step
            self._group.fail()
            raise


class Follower:
    """Does in another process what the first one is about to do."""

    def __init__(self, model: PackedModel) -> None:
        self._model = model

    def measure(self, tokens: int, rows: int) -> None:
        try:
            self._model.measure(tokens, rows)
        except torch.OutOfMemoryError:
            end(NO_ROOM_FOR_PART)

    def compare(self) -> None:
        _least_free(self._model.device)

    def hold(self, tokens: int) -> None:
        self._model.hold(tokens)

    def copy(self, source: int, target: int, tokens: int) -> None:
        self._model.cache.copy(source, target, tokens)

    def capture(self, most_rows: int, most_tokens: int) -> None:
        self._model.capture(most_rows, most_tokens, list)
        spare_what_is_loaded()  # the last of the start

    @torch.inference_mode()
    def run(self, step: Step, count: int | None) -> None:
        """count: of the tokens that were drawn."""
        drawn = None
        if count is not None:
            drawn = torch.empty(count, dtype=torch.int64, device=self._model.device)
            dist.broadcast(drawn, 0)
        self._model.run_planned(step, drawn)


def _follow(options: EngineOptions, device: str, rank: int, port: int, told: Connection) -> None:
    """What such a process does all its life."""
    threading.Thread(target=end_with_the_first, daemon=True).start()
    set_up_logging("error")  # what is no error, the first says too
    try:
        follower = _follower(options, device, rank, port)
        while True:
            name, arguments = pickle.loads(told.recv_bytes())
            getattr(follower, name)(*arguments)
    except EOFError:
        os._exit(0)
    except (StartupError, NotPackableError) as error:
        time.sleep(FIRST_SAYS_WHY_S)
        end(f"rank {rank}: {error}")
    except Exception:
        log.exception("rank %d", rank)
        end(f"rank {rank} has failed")


def _follower(options: EngineOptions, device: str, rank: int, port: int) -> Follower:
    _join(device, rank, options.tensor_parallel_size, port, None)
    checkpoint = Checkpoint(options, rank)
    compiled = device == "cuda" and not options.enforce_eager
    return Follower(PackedModel(checkpoint.causal_model(), checkpoint.max_model_len(), compiled=compiled))


def end_with_the_first() -> None:
    """Also when it is in the middle of a step, and of waiting for the parts of others."""
    first = multiprocessing.parent_process()
    assert first is not None
    first.join()
    os._exit(0)


def _join(device: str, rank: int, size: int, port: int, listening: socket.socket | None) -> None:
    """torch's process group, in which transformers deals out the weights. Returns when all are there."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))  # transformers reads them
    if sys.platform == "linux":
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo")
    opened = None if listening is None else listening.detach()
    store = dist.TCPStore(HOST, port, size, is_master=rank == 0, master_listen_fd=opened)  # type: ignore[attr-defined]
    on_gpu = device == "cuda"
    if on_gpu:
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=store,
        rank=rank,
        world_size=size,
        device_id=torch.device("cuda", rank) if on_gpu else None,
    )


def _least_free(device: torch.device) -> int:
    """Bytes, of the GPU of all processes that has least. All of them ask at the same time."""
    free = torch.tensor(torch.cuda.mem_get_info(device)[0], device=device)
    dist.all_reduce(free, dist.ReduceOp.MIN)
    return int(free)
