"""Every name in Redis, built here and never parsed back.

Braces are literal: the hash tag that keeps all keys of one model in one cluster slot.
"""

from dataclasses import dataclass

CLASSES = ("high", "normal", "batch")  # in the order in which workers serve them
GROUP = "workers"  # the one consumer group of every job stream


@dataclass(frozen=True, slots=True)
class Keys:
    namespace: str = "tokenbus"

    def worker(self, model: str, worker: str) -> str:
        """string WorkerInfo with a TTL: the lease."""
        return f"{self.namespace}:worker:{{{model}}}:{worker}"

    def workers(self, model: str) -> str:
        """zset worker id -> last seen (s); an index, pruned, never trusted alone."""
        return f"{self.namespace}:workers:{{{model}}}"

    def models(self) -> str:
        """hash name -> ModelRecord; tells 404 (never heard of) from 503 (nobody alive)."""
        return f"{self.namespace}:models"

    def loaders(self) -> str:
        """zset with a TTL, loader id -> last seen (s): who loads models on demand; an index, never trusted alone."""
        return f"{self.namespace}:loaders"

    def load(self, model: str) -> str:
        """string loader id with a TTL: who begins to load it, until its offer says so."""
        return f"{self.namespace}:load:{model}"

    def loader(self, loader: str) -> str:
        """string Offer with a TTL: the loader's lease."""
        return f"{self.namespace}:loader:{loader}"

    def demand(self) -> str:
        """zset with a TTL, model -> when it was last asked for (s, by a gateway's clock), of those that are loaded on
        demand."""
        return f"{self.namespace}:demand"

    def jobs(self, model: str, job_class: str) -> str:
        return f"{self.namespace}:jobs:{{{model}}}:{job_class}"

    def job_streams(self, model: str) -> tuple[str, ...]:
        return tuple(self.jobs(model, job_class) for job_class in CLASSES)

    def inbox(self, model: str, worker: str) -> str:
        """stream of one worker, only with addressed dispatch."""
        return f"{self.namespace}:inbox:{{{model}}}:{worker}"

    def dead(self, model: str) -> str:
        return f"{self.namespace}:dead:{{{model}}}"

    def cancelled(self, job: str) -> str:
        return f"{self.namespace}:cancelled:{job}"

    def gateway(self, gateway: str) -> str:
        """string with a TTL: the gateway's lease."""
        return f"{self.namespace}:gateway:{gateway}"

    def trace(self, job: str) -> str:
        """string Trace with a TTL: the life of a recent job."""
        return f"{self.namespace}:trace:{job}"

    def request(self, request_id: str) -> str:
        """string with a TTL: the request that a client gave an x-request-id of its own."""
        return f"{self.namespace}:request:{request_id}"

    def payload(self, request: str) -> str:
        """string: the list of a request's payloads, when too large to lie in each job."""
        return f"{self.namespace}:payload:{request}"

    def response(self, response: str) -> str:
        """hash with a TTL: a stored response, its input, and the job that makes it while it runs. One tag with its log
        and its owner."""
        return f"{self.namespace}:response:{{{response}}}"

    def log(self, request: str) -> str:
        """stream with a TTL: what was made of a durable request, see shared.durable."""
        return f"{self.namespace}:log:{{{request}}}"

    def owner(self, request: str) -> str:
        """string with a TTL, "ATTEMPT GATEWAY": who answers for a durable request."""
        return f"{self.namespace}:owner:{{{request}}}"

    def owned(self, gateway: str) -> str:
        """set: the durable requests that a gateway owns; an index, the owner keys decide."""
        return f"{self.namespace}:owned:{gateway}"

    def owners(self) -> str:
        """set: gateways that own durable requests, or did when they died."""
        return f"{self.namespace}:owners"

    def janitor(self) -> str:
        """string with a TTL: the gateway that cleans up after the dead."""
        return f"{self.namespace}:janitor"

    def events(self, gateway: str) -> str:
        """channel: frames from workers to one gateway."""
        return f"{self.namespace}:events:{gateway}"

    def control(self, worker: str) -> str:
        """channel: abort and drain, to one worker."""
        return f"{self.namespace}:control:{worker}"
