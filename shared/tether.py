"""`python -m shared.tether PARENT SIGNAL COMMAND...`: becomes COMMAND, which cannot outlive PARENT.

When the supervisor is killed hard, nobody is left to stop its children: the kernel does it (Linux), or a watcher
process (elsewhere).
"""

import ctypes
import os
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
LOOK_EVERY_S = 0.5


def die_with_parent(parent: int, signum: int) -> None:
    """This process, also after an exec, gets `signum` when `parent` ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signum))
    else:
        _fork_watcher(parent, signum)
    if os.getppid() != parent:  # it ended before we asked
        os.kill(os.getpid(), signum)


def _fork_watcher(parent: int, signum: int) -> None:
    target = os.getpid()
    if os.fork() != 0:
        return
    for standard in (0, 1, 2):
        os.close(standard)
    while os.getppid() == target and _exists(parent):
        time.sleep(LOOK_EVERY_S)
    if os.getppid() == target:
        os.kill(target, signum)
    os._exit(0)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]), signal.Signals(int(sys.argv[2])))
    os.execv(sys.argv[3], sys.argv[3:])
