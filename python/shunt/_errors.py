"""The exceptions of the package: one class for each code of the C++ library, with the library's own text."""

from __future__ import annotations

from dataclasses import dataclass


class Error(RuntimeError):
    """Base of every error that Shunt raises.

    ``code`` is the library's name of the error (docs/errors.md says what each leaves behind), ``peer`` the rank that
    a timeout or a lost peer is about, -1 where none is known.
    """

    code = "internal"
    peer = -1


class InvalidArgumentError(Error, ValueError):
    """An argument is outside of what is documented. Nothing was changed; the object is usable."""

    code = "invalid_argument"


class InvalidStateError(Error):
    """Calls came in an order that the object does not allow. Nothing was changed; the object is usable."""

    code = "invalid_state"


class OutOfMemoryError(Error, MemoryError):
    """A buffer would not fit the memory available. Nothing was allocated."""

    code = "out_of_memory"


class RowOverflowError(Error):
    """A rank would receive more rows than ``max_recv_rows``; the step is void on every rank, the object usable."""

    code = "overflow"


class DeadlineError(Error, TimeoutError):
    """A peer did not answer in time. The object is dead."""

    code = "timeout"


class PeerLostError(Error, ConnectionError):
    """A peer's process ended. The object is dead."""

    code = "peer_lost"


class PeerMaskedError(Error):
    """A peer was lost and masked; the step is void on every survivor and must be repeated."""

    code = "peer_masked"


class UnavailableError(Error):
    """This machine or build cannot do it; the message gives the reason."""

    code = "unavailable"


class FileError(Error, OSError):
    """A file could not be read or written, or its content is malformed."""

    code = "io"


class CheckFailedError(Error):
    """A result differs from its reference."""

    code = "check_failed"


class InternalError(Error):
    """A bug of Shunt."""

    code = "internal"


_CLASSES: dict[str, type[Error]] = {
    one.code: one
    for one in (
        InvalidArgumentError,
        InvalidStateError,
        OutOfMemoryError,
        RowOverflowError,
        DeadlineError,
        PeerLostError,
        PeerMaskedError,
        UnavailableError,
        FileError,
        CheckFailedError,
        InternalError,
    )
}


def make_error(code: str, message: str, peer: int = -1) -> Error:
    """The exception for a code of the library; called by the extension module."""
    error = _CLASSES.get(code, InternalError)(message)
    error.peer = peer
    return error


def failure_of(error: BaseException) -> tuple[str, str] | None:
    """Code and message of what ended a rank's function; None for an exit with status 0."""
    if isinstance(error, Error):
        return error.code, str(error)
    if isinstance(error, SystemExit):
        if error.code is None or error.code == 0:
            return None
        return "internal", f"left its function by exit({error.code})"
    return "internal", f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class RankOutcome:
    """How one rank ended."""

    rank: int
    exit_status: int
    """0 on success; 128 + signal where a signal killed it."""
    signal: int
    """0, or the signal that killed the process."""
    code: str
    """Of the error that ended the rank; "internal" where it was none of Shunt's."""
    message: str
    """Text of the error that ended the rank, empty on success."""
    traceback: str = ""
    """Where Python raised it, as text; empty where it did not."""


class RanksFailedError(Error):
    """At least one rank of ``run_ranks`` or ``launch`` did not end well; ``outcomes`` says how each one ended."""

    outcomes: tuple[RankOutcome, ...] = ()


def ranks_failed(outcomes: list[RankOutcome]) -> RanksFailedError:
    """The exception for a world of which some rank failed.

    Its text is that of the rank that says most about the cause: one that failed by itself comes before one that a
    signal killed, and that before those that only lost a peer.
    """

    def weight(outcome: RankOutcome) -> int:
        if outcome.signal != 0:
            return 1
        return 2 if outcome.code in ("peer_lost", "timeout") else 0

    failed = [one for one in outcomes if one.exit_status != 0]
    first = min(failed, key=weight)
    text = f"rank {first.rank} of {len(outcomes)}: {first.message or f'ended with status {first.exit_status}'}"
    if len(failed) > 1:
        text += f" ({len(failed)} ranks failed: {', '.join(str(one.rank) for one in failed)})"
    if first.traceback:
        text += f"\n\n{first.traceback.rstrip()}"
    error = RanksFailedError(text)
    error.code = first.code
    error.outcomes = tuple(outcomes)
    return error
