"""Verdicts, and where they are remembered: a JSON file each, which is also the report to send."""

import contextlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from setok_kernels.verification.identity import Identity

STATES = ("passed", "failed", "unknown")


class VerificationWarning(UserWarning):
    """`backend="auto"` does not take the Triton kernels here, or cannot remember that it may."""


@dataclass(frozen=True)
class Outcome:
    """What came of one case.

    Attributes:
        case: its name.
        state: "passed", "failed", or "unknown" where the machine did not let it run.
        seconds: how long it took.
        message: why it is not "passed", else empty.
    """

    case: str
    state: str
    seconds: float
    message: str = ""


@dataclass(frozen=True)
class Verdict:
    """What came of a verification.

    Attributes:
        identity: what it holds for.
        outcomes: of each case that was begun.
        seconds: how long all took, with the start of the process.
        problem: why the set of cases did not come to its end, else empty.
        crashed: whether that is the kernels' fault (the process was killed by a signal, or hung).
        log: the last that the process wrote to stderr.
    """

    identity: Identity
    outcomes: tuple[Outcome, ...]
    seconds: float
    problem: str = ""
    crashed: bool = False
    log: str = ""

    @property
    def state(self) -> str:
        """One of `STATES`."""
        states = {outcome.state for outcome in self.outcomes}
        if self.crashed or "failed" in states:
            return "failed"
        if self.problem or states != {"passed"}:
            return "unknown"
        return "passed"

    @property
    def reason(self) -> str:
        """Why it is not "passed", in one line."""
        wrong = [o for o in self.outcomes if o.state != "passed"]
        failed = [o for o in wrong if o.state == "failed"] or wrong
        said = [f"{o.case}: {(o.message.splitlines() or [''])[0]}" for o in failed[:1]]
        if len(failed) > 1:
            said.append(f"and {len(failed) - 1} more")
        return "; ".join([*said, *([self.problem] if self.problem else [])])

    def to_json(self) -> str:
        """For `of_json`."""
        return json.dumps(asdict(self) | {"state": self.state}, indent=1) + "\n"

    @classmethod
    def of_json(cls, text: str) -> "Verdict":
        """The inverse of `to_json`.

        Raises:
            ValueError: the text is no verdict.
        """
        try:
            fields = json.loads(text)
            fields.pop("state")
            identity = Identity(**fields.pop("identity"))
            outcomes = tuple(Outcome(**outcome) for outcome in fields.pop("outcomes"))
            verdict = cls(identity, outcomes, **fields)
            for outcome in outcomes:
                if outcome.state not in STATES:
                    raise ValueError(f"no verdict: state {outcome.state!r}")
            for seconds in (verdict.seconds, *(outcome.seconds for outcome in outcomes)):
                if not isinstance(seconds, int | float):
                    raise ValueError(f"no verdict: {seconds!r} seconds")
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"no verdict: {error}") from error
        return verdict


def cache_folder() -> Path:
    """Where verdicts lie: `$SETOK_CACHE`, else setok_kernels in the user's cache folder."""
    named = os.environ.get("SETOK_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "setok_kernels"


def path_of(identity: Identity) -> Path:
    """The file of a verdict, whether it is there or not."""
    return cache_folder() / "verified" / f"{identity.key}.json"


def recall(identity: Identity) -> tuple[Verdict, Path] | None:
    """The remembered verdict and its file; None where there is none that can be read."""
    try:
        path = path_of(identity)
        verdict = Verdict.of_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):
        # Nothing there, something else there, or no home folder.
        return None
    final = verdict.identity == identity and verdict.state != "unknown"
    return (verdict, path) if final else None


def remember(verdict: Verdict) -> Path | None:
    """Writes a verdict that is final where the next process looks; else, and if that fails, aside.

    Returns:
        The file; None where none could be written.
    """
    try:
        if verdict.state != "unknown":
            path = path_of(verdict.identity)
            _write(path, verdict.to_json())
            return path
    except (OSError, RuntimeError) as error:
        warn(
            f"setok_kernels: cannot remember the verification of the Triton kernels ({error}): "
            "each process repeats it; set SETOK_CACHE to a folder that can be written"
        )
    try:
        path = Path(tempfile.mkdtemp(prefix="setok-verification-")) / "report.json"
        _write(path, verdict.to_json())
        return path
    except OSError:
        return None


@contextlib.contextmanager
def one_at_a_time(identity: Identity, seconds: float) -> Iterator[None]:
    """Held by one process at a time for each identity; the others wait.

    Where no lock can be made, nothing can be remembered either: every process is on its own.

    Args:
        identity: what is being verified.
        seconds: how long to wait for the others at most.

    Raises:
        TimeoutError: another process held it for longer.
    """
    from filelock import FileLock, Timeout

    try:
        path = path_of(identity).with_suffix(".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            # filelock may wait for what cannot be written as if somebody held it.
            lock = FileLock(path, timeout=seconds)
        lock.acquire()
    except Timeout as error:
        raise TimeoutError(f"another process has held {path} for {seconds:.0f} s") from error
    except (OSError, RuntimeError, NotImplementedError):
        lock = None
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


_SAID: set[str] = set()


def warn(message: str) -> None:
    """Warns once a process, whatever the filters of `warnings` say about repetition."""
    if message not in _SAID:
        _SAID.add(message)
        warnings.warn(message, VerificationWarning, stacklevel=2)


def _write(path: Path, text: str) -> None:
    """A reader finds all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
