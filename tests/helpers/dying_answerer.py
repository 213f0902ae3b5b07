"""Answerer of batches whose process kills itself, for tests of `setokim.evaluation.answering`."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from setokim.evaluation.answering import AnswererFactory


@dataclass(frozen=True)
class DyingFactory:
    """Factory of answerers, one of which dies at a batch.

    Attributes:
        inner: factory of the answerers.
        batch: number of the batch.
        flag: file that the process creates before it dies; where it exists, none dies. None for
            death at each attempt.
    """

    inner: AnswererFactory
    batch: int
    flag: Path | None

    def __call__(self, device):
        answer = self.inner(device)

        def dies(batch):
            if batch.number == self.batch and not (self.flag and self.flag.exists()):
                if self.flag:
                    self.flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return answer(batch)

        return dies
