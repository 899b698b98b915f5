"""The figures of the demonstration, and what follows from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ._bank import Audit, Caller, Job

__all__ = [
    "Act",
    "AtRest",
    "Kill",
    "Report",
    "measure",
    "measure_kills",
    "milliseconds",
    "quantile",
]


@dataclass(frozen=True)
class Act:
    """What one act measured. A ``None`` was not to be measured: no job ended well."""

    name: str
    jobs: int
    errors: int
    jobs_per_second: float
    p50_seconds: float | None
    p99_seconds: float | None
    worst_wait_seconds: float | None
    """The longest wait for a connection."""
    connections_made: int


@dataclass(frozen=True)
class Kill:
    """One time that every connection was killed under load."""

    connections: int
    errors: int
    """Jobs that failed from then to the next kill, or to the end of the act."""
    recovery_seconds: float | None
    """Until every caller had done a job that it began after the kill."""


@dataclass(frozen=True)
class AtRest:
    """Every connection was killed while all were idle, then every caller did a job."""

    connections: int
    jobs: int
    errors: int


@dataclass(frozen=True)
class Report:
    """All that ``--json`` prints."""

    core: str
    python: str
    postgresql: str
    cores: int
    threads: int
    max_size: int
    acts: list[Act]
    kills: list[Kill]
    at_rest: AtRest
    audit: Audit

    def failures(self) -> list[str]:
        """The checks that failed, one phrase each."""
        found = self.audit.failures()
        for act in self.acts:
            if act.p50_seconds is None:
                found.append(f"{act.name}: no job ended well")
        for number, kill in enumerate(self.kills, 1):
            if kill.errors > kill.connections:
                found.append(
                    f"kill {number}: {kill.errors} errors from {kill.connections} connections"
                )
            if kill.recovery_seconds is None:
                found.append(f"kill {number}: not every caller was served again")
        if self.at_rest.errors:
            found.append(f"{self.at_rest.errors} errors from connections that died idle")
        return found

    def verdict(self) -> str:
        """One sentence."""
        if failures := self.failures():
            return f"FAILED: {'; '.join(failures)}."
        direct, pooled, _ = self.acts
        killed = sum(kill.connections for kill in self.kills)
        errors = sum(kill.errors for kill in self.kills)
        recovery = max(kill.recovery_seconds or 0.0 for kill in self.kills)
        return (
            f"{pooled.jobs_per_second / direct.jobs_per_second:.1f} times the work with "
            f"{pooled.connections_made} connections instead of {direct.connections_made}; "
            f"{killed} killed under load cost {errors} errors and "
            f"{milliseconds(recovery)} ms at most, {self.at_rest.connections} killed idle none; "
            "nothing lost, nothing doubled."
        )

    def table(self) -> str:
        """The acts side by side, aligned."""
        rows = [
            ("", "jobs/s", "p50", "p99", "worst wait", "connections", "errors"),
            ("", "", "ms", "ms", "ms", "made", ""),
        ]
        for act in self.acts:
            rows.append(
                (
                    act.name,
                    f"{act.jobs_per_second:.0f}",
                    milliseconds(act.p50_seconds),
                    milliseconds(act.p99_seconds),
                    milliseconds(act.worst_wait_seconds),
                    str(act.connections_made),
                    str(act.errors),
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        )


def milliseconds(seconds: float | None) -> str:
    """Seconds, printed as milliseconds."""
    return "-" if seconds is None else f"{seconds * 1000:.1f}"


def quantile(ordered: list[float], q: float) -> float | None:
    """The smallest value that the part *q* of all does not exceed."""
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)] if ordered else None


def measure(name: str, jobs: list[Job], connections_made: int) -> Act:
    """The figures of one act; *jobs* are all of it, failed ones included."""
    times = sorted(job.ended - job.began for job in jobs if job.error is None)
    duration = max(job.ended for job in jobs) - min(job.began for job in jobs)
    return Act(
        name=name,
        jobs=len(times),
        errors=len(jobs) - len(times),
        jobs_per_second=len(times) / duration,
        p50_seconds=quantile(times, 0.5),
        p99_seconds=quantile(times, 0.99),
        worst_wait_seconds=max((job.wait for job in jobs if job.wait is not None), default=None),
        connections_made=connections_made,
    )


def measure_kills(callers: list[Caller], kills: list[tuple[float, int]]) -> list[Kill]:
    """*kills*: for each, when, and how many connections it ended."""
    measured = []
    ends = [moment for moment, _ in kills[1:]] + [math.inf]
    for (moment, connections), end in zip(kills, ends, strict=True):
        errors = 0
        served = []
        for caller in callers:
            errors += sum(bool(job.error) and moment <= job.ended < end for job in caller.jobs)
            well = (job.ended for job in caller.jobs if job.began >= moment and not job.error)
            served.append(next(well, math.inf))
        recovery = max(served) - moment
        measured.append(Kill(connections, errors, None if recovery == math.inf else recovery))
    return measured
