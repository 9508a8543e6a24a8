import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]

# A supervisor that starts a tethered `sleep` and says its process id, then stays until it is killed.
SUPERVISOR = """
import os, subprocess, sys
tether = "import runpy, sys; sys.platform = {platform!r}; runpy.run_module('shared.tether', run_name='__main__')"
command = [sys.executable, "-c", tether, str(os.getpid()), "15", "/bin/sleep", "60"]
child = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_tethered_command_ends_with_its_supervisor(platform: str) -> None:
    code = SUPERVISOR.format(platform=platform)
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        child = psutil.Process(int(supervisor.stdout.readline()))
        while child.name() != "sleep":
            assert supervisor.poll() is None
        watchers = child.children()
        assert len(watchers) == (0 if platform == "linux" else 1)
        supervisor.kill()
        supervisor.wait()
        _, alive = psutil.wait_procs([child, *watchers], timeout=10)
        assert alive == []
