"""One-line messages where JAX aborts a process.

JAX ends a process, with a trace of its C++, when it can't reach the first
process of a run any more or never has; nothing inside of it can prevent that.
"""

import contextlib
import ctypes
import os
import re
import signal
import sys

from mmrl.machines import signals

# Of Linux' sys/prctl.h.
_PR_SET_PDEATHSIG = 1
# What JAX writes before it aborts a process that has lost the others, what that
# contains if they never met, and what else its service writes then.
_ABORTED = b"JAX distributed service detected fatal errors"
_MEETING = b"RegisterTask"
_SERVICE = re.compile(
  rb"E\d{4} .*coordination_service|\d+$|The tasks have crashed|RPC: /xla"
)


def over(coordinator: str | None, count: int | None) -> None:
  """Continues in a child process; this one reports how the child ended.

  To be called before JAX starts its threads.

  Args:
    coordinator, count: see `processes.join`, for messages.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  parent = os.getpid()
  ours, theirs = os.pipe()
  child = os.fork()
  if not child:
    os.dup2(theirs, sys.stderr.fileno())
    os.close(ours)
    os.close(theirs)
    if sys.platform == "linux":
      ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
      os._exit(1)
    # This process says what a ctrl-C means, to whichever of the two it came.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return
  os.close(theirs)
  told: list[int] = []

  def pass_on(number, frame):
    del frame
    again = number == signal.SIGINT and number in told
    told.append(number)
    with contextlib.suppress(ProcessLookupError):
      os.kill(child, signal.SIGKILL if again else signal.SIGTERM)
    if again:
      os._exit(signals.AT_ONCE)

  signal.signal(signal.SIGTERM, pass_on)
  if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, pass_on)
  last_words: list[bytes] = []
  with open(ours, "rb") as pipe:
    for line in pipe:
      if last_words or _ABORTED in line or _SERVICE.match(line):
        last_words.append(line)
      else:
        sys.stderr.buffer.write(line)
        sys.stderr.flush()
  status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  text = b"".join(last_words)
  aborted = status == -signal.SIGABRT and _ABORTED in text
  if aborted and _MEETING in text:
    print(
      f"error: expected {count or 'all'} processes to join at"
      f" {coordinator or 'the coordinator that JAX finds'}, found some"
      " missing; start the same command on every machine, each with its own"
      " --process",
      file=sys.stderr,
    )
    sys.exit(2)
  if aborted:
    print(
      "this process stops, as another one ended or can't be reached; run the"
      " same command again on all",
      file=sys.stderr,
    )
    sys.exit(signals.RESTART)
  for line in last_words:
    if not _SERVICE.match(line):
      sys.stderr.buffer.write(line)
  sys.stderr.flush()
  # As shells report that a signal ended it.
  sys.exit(status if status >= 0 else 128 - status)
