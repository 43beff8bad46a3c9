"""The monitor's event loop."""

import os
import signal

from highrt.monitor.loop import IN, Loop


def test_what_was_ready_of_a_descriptor_is_not_told_to_who_has_its_number_next() -> None:
    before = signal.getsignal(signal.SIGCHLD)
    loop = Loop(on_error=lambda error: (_ for _ in ()).throw(error))
    pipes = [os.pipe() for _ in range(2)]
    called: list[str] = []

    def first(events: int) -> None:
        """Ends the other one, whose number the next descriptor gets."""
        called.append("first")
        old = pipes[1][0]
        loop.unwatch(pipes[0][0])
        loop.unwatch(old)
        os.close(old)
        again, write = os.pipe()
        assert again == old
        pipes[1] = again, pipes[1][1]
        pipes.append((os.dup(again), write))
        loop.watch(again, IN, lambda events: called.append("nothing to read"))
        loop.after(0.05, loop.stop)

    try:
        for read, write in pipes:
            os.write(write, b"x")
            loop.watch(read, IN, first if read == pipes[0][0] else lambda events: called.append("second"))
        loop.run()
        assert called == ["first"]
    finally:
        loop.close()
        signal.signal(signal.SIGCHLD, before)
        for pipe in pipes:
            for descriptor in pipe:
                os.close(descriptor)
