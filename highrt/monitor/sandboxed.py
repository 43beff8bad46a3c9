"""A container that lives in a sandbox (gVisor's runsc), where only the runtime sees its processes.

The sandbox is a process of the host. It belongs to the pod's first container, which has the pod's ID and ends with it, as any
container with its first process. The others have the sandbox's PID, and are signalled and waited for through the runtime.
"""

from highrt.monitor.container import ENVIRON, Container

TYPE_CHECKING = False
if TYPE_CHECKING:
    from highrt.monitor.container import Done

_SIGKILL = 9


class SandboxedContainer(Container):
    """One of those that have no process of their own on the host."""

    takes_streams_at_start = True

    def start(self, environ: "dict[str, str]", done: "Done", *, more: bool) -> None:
        def started(failure: str | None) -> None:
            done(failure)
            if failure is None:
                # A sandbox that has died cannot tell: then it has killed all that was in it.
                self._runtime.wait(self.id, environ, lambda code: self._ended(_SIGKILL if code is None else code << 8))

        super().start(environ, started, more=more)

    def _await_end(self) -> None:
        """There is nothing to wait for before it has been started."""

    def _signal(self, number: int, *, everybody: bool) -> None:
        options = ["--all"] if everybody else []
        self._runtime.call(["kill", *options, self.id, str(number)], self._runtime_log, dict(ENVIRON), self._signalled)

    def _signalled(self, failure: str | None) -> None:
        if failure and self.state == "running":
            self._emit({"event": "trouble", "container": self.id, "text": f"the runtime cannot signal it: {failure}"})

    def _end(self) -> None:
        if self.state == "created":  # nothing would tell of its end
            self._close_given()
            self._ended(_SIGKILL)
        else:
            super()._end()
