"""Ctrl-C and SIGTERM in the middle of a run: finish the step first."""

from __future__ import annotations

import signal
import threading
from types import TracebackType
from typing import Any


class Stop:
    """While it is entered, the first signal is only noted in `signal`; a second one acts as it did before.

    Outside of the main thread Python hands out no signals, and it does nothing; a signal that is ignored stays ignored.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # a job in the background may not be meant
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def error(self, text: str) -> BaseException:
        """What the signal would have raised, with a text."""
        return KeyboardInterrupt(text) if self.signal == signal.SIGINT else SystemExit(text)

    def _note(self, number: int, _: Any) -> None:
        self.signal = number
        signal.signal(number, self._before[number])
