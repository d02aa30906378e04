"""Virtual time: what happens later, in one order; and processes that wait for it.

A process runs ordinary blocking code in a thread of its own, but exactly one thread runs at any
moment: it hands on when it waits. So a schedule is a function of its seed.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable

_HANDING_ON_S = 30.0  # of real time; nothing here takes long, so more means that a test hangs


class Killed(BaseException):
    """Raised inside a process that is killed, wherever it waits; it writes nothing more. No error:
    nobody catches it.
    """


class Process:
    """A thread that runs only while the world's time stands still for it."""

    def __init__(self, world: World, name: str, clock_s: float = 0.0) -> None:
        """clock_s: what its monotonic clock shows beyond the world's."""
        self.world = world
        self.name = name
        self.clock_s = clock_s
        self.killed = False
        self.done = False
        self._turn = threading.Lock()
        self._turn.acquire()
        self._wake: int = -1  # the number of the entry that it waits for

    def monotonic(self) -> float:
        return self.world.now + self.clock_s

    def start(self, run: Callable[[], None]) -> None:
        """Begin when the world comes to it."""

        def body() -> None:
            self.take_turn()
            try:
                if not self.killed:
                    run()
            except Killed:
                pass
            except BaseException as error:  # noqa: BLE001 - raised again by `World.run`
                self.world.fail(error)
            self.done = True
            self.world.hand_on(None)

        self._wake = self.world.push(0.0, self)
        threading.Thread(target=body, name=self.name, daemon=True).start()

    def wait(self, seconds: float) -> None:
        """Let the world go on for so long. Raises Killed."""
        self._wake = self.world.push(seconds, self)
        self.world.hand_on(self)
        if self.killed:
            raise Killed

    def kill(self) -> None:
        """It goes no further than where it waits now."""
        self.killed = True

    def is_due(self, number: int) -> bool:
        return not self.done and number == self._wake

    def give_turn(self) -> None:
        self._turn.release()

    def take_turn(self) -> None:
        if not self._turn.acquire(timeout=_HANDING_ON_S):
            raise RuntimeError(f"{self.name} never gets its turn")


class World:
    """The one who runs is `running`; None: a callback."""

    def __init__(self) -> None:
        self.now = 0.0
        self.running: Process | None = None
        self._heap: list[tuple[float, int, Callable[[], None] | Process]] = []
        self._count = itertools.count()
        self._processes: list[Process] = []
        self._error: BaseException | None = None
        self._over = False
        self._main = Process(self, "the test")

    def at(self, seconds: float, what: Callable[[], None]) -> None:
        """Call `what` in so many seconds."""
        self.push(seconds, what)

    def push(self, seconds: float, what: Callable[[], None] | Process) -> int:
        number = next(self._count)
        heapq.heappush(self._heap, (self.now + seconds, number, what))
        return number

    def spawn(self, name: str, run: Callable[[Process], None], *, clock_s: float = 0.0) -> Process:
        process = Process(self, name, clock_s)
        self._processes.append(process)
        process.start(lambda: run(process))
        return process

    def fail(self, error: BaseException) -> None:
        """Ends the run with this error."""
        self._error = self._error or error
        self._over = True

    def stop(self) -> None:
        """The run is over once whoever runs waits."""
        self._over = True

    def run(self, until_s: float) -> bool:
        """Whether somebody stopped it by then. Raises what went wrong anywhere."""
        self.push(until_s, self.fail_late)
        self._late = False
        try:
            self.hand_on(self._main)
        finally:
            self._over = True
            for process in self._processes:
                while not process.done:
                    process.kill()
                    process.give_turn()
                    self._main.take_turn()
        if self._error is not None:
            raise self._error
        return not self._late

    def fail_late(self) -> None:
        self._late = True
        self._over = True

    def hand_on(self, me: Process | None) -> None:
        """Go on with what is next, until that is `me`; None: `me` has ended."""
        while not self._over:
            if not self._heap:
                self._over = True
                break
            at, number, what = heapq.heappop(self._heap)
            if isinstance(what, Process):
                if not what.is_due(number):
                    continue
                self.now = max(self.now, at)
                self.running = what
                if what is me:
                    return
                what.give_turn()
                if me is not None:
                    me.take_turn()
                return
            self.now = max(self.now, at)
            self.running = None
            try:
                what()
            except BaseException as error:  # noqa: BLE001 - raised again by `run`
                self.fail(error)
        if me is self._main:
            return
        self._main.give_turn()
        if me is not None:
            me.take_turn()


class VirtualTime:
    """Stands for the module `time` in modules under test: shows the clock of who runs."""

    def __init__(self, world: World) -> None:
        self._world = world

    def monotonic(self) -> float:
        running = self._world.running
        return self._world.now if running is None else running.monotonic()

    perf_counter = monotonic
    time = monotonic

    def sleep(self, seconds: float) -> None:
        running = self._world.running
        if seconds > 0 and running is not None:
            running.wait(seconds)
