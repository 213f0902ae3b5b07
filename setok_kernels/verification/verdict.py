"""Verdicts and their cache: one JSON file each, which is also the report for the developers."""

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
    """Warning: `backend="auto"` does not use the Triton kernels, or cannot cache the verdict."""


@dataclass(frozen=True)
class Outcome:
    """Result of one case.

    Attributes:
        case: name of the case.
        state: "passed", "failed", or "unknown" if the machine could not run it.
        seconds: duration in seconds.
        message: reason if the state is not "passed", else empty.
    """

    case: str
    state: str
    seconds: float
    message: str = ""


@dataclass(frozen=True)
class Verdict:
    """Result of a verification.

    Attributes:
        identity: device and versions of the verification.
        outcomes: outcome of each case that was started.
        seconds: total duration in seconds, with the start of the processes.
        problem: reason if not all cases were completed, else empty.
        crashed: flag: the kernels caused the problem (killed by a signal, or hung).
        log: end of the processes' output.
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
        """Reason if the state is not "passed", in one line."""
        wrong = [o for o in self.outcomes if o.state != "passed"]
        failed = [o for o in wrong if o.state == "failed"] or wrong
        reasons = [f"{o.case}: {(o.message.splitlines() or [''])[0]}" for o in failed[:1]]
        if len(failed) > 1:
            reasons.append(f"and {len(failed) - 1} more")
        return "; ".join([*reasons, *([self.problem] if self.problem else [])])

    def to_json(self) -> str:
        """Return the verdict as JSON for `of_json`."""
        return json.dumps(asdict(self) | {"state": self.state}, indent=1) + "\n"

    @classmethod
    def of_json(cls, text: str) -> "Verdict":
        """Parse the output of `to_json`.

        Raises:
            ValueError: the text is not a verdict.
        """
        try:
            fields = json.loads(text)
            fields.pop("state")
            identity = Identity(**fields.pop("identity"))
            outcomes = tuple(Outcome(**outcome) for outcome in fields.pop("outcomes"))
            verdict = cls(identity, outcomes, **fields)
            for outcome in outcomes:
                if outcome.state not in STATES:
                    raise ValueError(f"not a verdict: state {outcome.state!r}")
            for seconds in (verdict.seconds, *(outcome.seconds for outcome in outcomes)):
                if not isinstance(seconds, int | float):
                    raise ValueError(f"not a verdict: {seconds!r} seconds")
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a verdict: {error}") from error
        return verdict


def cache_folder() -> Path:
    """Return the folder of the cache: `$SETOK_CACHE`, or setok_kernels in the user's cache."""
    named = os.environ.get("SETOK_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "setok_kernels"


def path_of(identity: Identity) -> Path:
    """Return the path of a verdict's file, existing or not."""
    return cache_folder() / "verified" / f"{identity.key}.json"


def recall(identity: Identity) -> tuple[Verdict, Path] | None:
    """Return the cached verdict and its file, or None if there is no readable one."""
    try:
        path = path_of(identity)
        verdict = Verdict.of_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):
        # No file, another kind of file, or no home folder.
        return None
    final = verdict.identity == identity and verdict.state != "unknown"
    return (verdict, path) if final else None


def remember(verdict: Verdict) -> Path | None:
    """Write a final verdict to the cache; write any other, or on failure, to a temporary file.

    Returns:
        Path of the file, or None if none could be written.
    """
    try:
        if verdict.state != "unknown":
            path = path_of(verdict.identity)
            _write(path, verdict.to_json())
            return path
    except (OSError, RuntimeError) as error:
        warn(
            f"setok_kernels: cannot cache the verification of the Triton kernels ({error}), "
            "so each process repeats it; set SETOK_CACHE to a writable folder"
        )
    try:
        path = Path(tempfile.mkdtemp(prefix="setok-verification-")) / "report.json"
        _write(path, verdict.to_json())
        return path
    except OSError:
        return None


@contextlib.contextmanager
def one_at_a_time(identity: Identity, seconds: float) -> Iterator[None]:
    """Hold a lock that one process at a time has for each identity.

    If no lock file can be created, no verdict can be cached either, and each process runs alone.

    Args:
        identity: identity of the device.
        seconds: maximum wait for other processes, in seconds.

    Raises:
        TimeoutError: another process held the lock for longer.
    """
    from filelock import FileLock, Timeout

    try:
        path = path_of(identity).with_suffix(".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            # On a read-only folder filelock may wait as if the lock were held.
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


_WARNED: set[str] = set()


def warn(message: str) -> None:
    """Warn once per process, whatever the filters of `warnings`."""
    if message not in _WARNED:
        _WARNED.add(message)
        warnings.warn(message, VerificationWarning, stacklevel=2)


def _write(path: Path, text: str) -> None:
    """Write a file atomically."""
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
