"""`python -m worker.engines.llamacpp_server SOCKET SETTINGS`: llama.cpp's own server out of the xllamacpp package, for
who has no `llama-server` installed. SETTINGS: JSON, attributes of its CommonParams."""

import json
import signal
import sys

import xllamacpp


def main() -> None:
    socket, settings = sys.argv[1], json.loads(sys.argv[2])
    params = xllamacpp.CommonParams()
    params.hostnames = [socket]
    params.model.path = settings.pop("model")
    for name in ("cpuparams", "cpuparams_batch"):
        if (threads := settings.get("threads")) is not None:
            getattr(params, name).n_threads = threads
    settings.pop("threads", None)
    for name, value in settings.items():
        setattr(params, name, value)
    try:
        server = xllamacpp.Server(params)
    except RuntimeError:  # llama.cpp has said why
        sys.exit(1)
    print("listening on", server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
