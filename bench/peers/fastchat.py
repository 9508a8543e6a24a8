"""FastChat, which Tokenbus replaces: controller and OpenAI server as they come from PyPI, and a worker without a model
on FastChat's own base class (`fastchat_worker`)."""

from bench.peers.environments import PLACE, python_of, version_of
from bench.peers.peer import Peer
from cli.valkey import free_port

# Its last release is older than what broke it. Its servers need neither torch nor transformers, whose extra stays away.
REQUIREMENTS = ("fschat==0.2.36", "pydantic<2", "fastapi<0.120")


class FastChat(Peer):
    name = "fastchat"

    async def launch(self, port: int) -> None:
        python = await python_of(self.name, REQUIREMENTS, "fastchat.serve.openai_api_server")
        self.version = await version_of(python, "fschat")
        controller_port, worker_port = free_port(), free_port()
        controller = f"http://127.0.0.1:{controller_port}"
        environment = {"LOGDIR": str(PLACE / "fastchat.logs")}

        def serve(module: str, port: int) -> list[str]:
            return [str(python), "-m", module, "--host", "127.0.0.1", "--port", str(port)]

        command = serve("fastchat.serve.controller", controller_port)
        await self.run("gateway", "controller", command, environment)
        await self.until_it_listens(controller_port)
        command = [*serve("bench.peers.fastchat_worker", worker_port), "--controller-address", controller]
        command += self.models.values()
        await self.run("worker", "worker", command, environment)
        await self.until_it_listens(worker_port)
        command = [*serve("fastchat.serve.openai_api_server", port), "--controller-address", controller]
        await self.run("gateway", "api", command, environment)
