"""LiteLLM's proxy, one worker process, in front of an upstream that costs next to nothing (`upstream`)."""

import sys

import orjson

from bench.peers.environments import PLACE, python_of, version_of
from bench.peers.peer import Peer
from cli.valkey import free_port

# As its documentation advises for production and for benchmarks: errors only in the log, no callbacks, no retries, no
# .env file. Without a database and without keys it does less than most of its users have it do.
ENVIRONMENT = {
    "LITELLM_LOG": "ERROR",
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # or it asks the internet for prices before it starts
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # no keys on loopback, as in all that is compared
}
SETTINGS = {"set_verbose": False, "callbacks": [], "num_retries": 0, "request_timeout": 600}


class LiteLLM(Peer):
    name = "litellm"

    async def launch(self, port: int) -> None:
        python = await python_of(self.name, ["litellm[proxy]"], "litellm.proxy.proxy_server")
        self.version = await version_of(python, "litellm")
        upstream_port = free_port()
        command = [sys.executable, "-m", "bench.peers.upstream", "--port", str(upstream_port)]
        await self.run("worker", "upstream", command)
        await self.until_it_listens(upstream_port)
        configuration = PLACE / "litellm.config.yaml"
        configuration.write_bytes(self._configuration(f"http://127.0.0.1:{upstream_port}/v1"))
        command = [str(python), "-m", "litellm.proxy.proxy_cli", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--num_workers", "1", "--config", str(configuration)]
        await self.run("gateway", "proxy", command, ENVIRONMENT)

    def _configuration(self, upstream: str) -> bytes:
        """JSON is YAML too."""
        models = [
            {"model_name": name, "litellm_params": {"model": f"openai/{name}", "api_base": upstream, "api_key": "none"}}
            for name in self.models.values()
        ]
        return orjson.dumps({"model_list": models, "litellm_settings": SETTINGS})
