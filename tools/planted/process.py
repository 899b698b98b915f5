"""What a process does to a pool: forks, interrupts, whatever may fail at once."""

from __future__ import annotations

from .mutant import CORE, HOUSE, KEEPER, OPENER, TURNAROUND, Mutant

MATRIX = [
    Mutant(
        "dial-that-fails-for-long-keeps-its-slot",
        OPENER,
        """\
        except BaseException as error:
            self._core.forget(entry)
            self._failed(error)
""",
        """\
        except BaseException as error:
            self._failed(error)
""",
        "tests/pool/test_matrix.py::test_whole_whatever_happens[error-left-alone]",
    ),
    Mutant(
        "failed-after-connect-keeps-its-slot",
        OPENER,
        """\
            self._core.adopt(entry, conn, fd)
            self._core.retire(entry, entry.holder, "after_connect")
""",
        """\
            self._core.adopt(entry, conn, fd)
""",
        "tests/pool/test_matrix.py::test_whole_whatever_happens[ok-left-alone]",
    ),
    Mutant(
        "failing-before-close-ends-the-keeper",
        KEEPER,
        "except BaseException:  # nobody else would hear of it",
        "except KeyError:",
        "tests/pool/test_matrix.py::test_whole_whatever_happens[ok-left-alone]",
    ),
    Mutant(
        "one-dial-too-many",
        CORE,
        """\
            if wanted > self.ceiling - self.size:
                wanted = self.ceiling - self.size
""",
        """\
            if wanted > self.ceiling - self.size:
                wanted = self.ceiling - self.size + 1
""",
        "tests/core/test_waiters.py::test_no_more_dials_than_slots",
    ),
]

INTERRUPTS = [
    Mutant(
        "hook-mark-outlives-an-interrupt",
        TURNAROUND,
        """\
        self._hooking.hook = name
        try:
            return hook(argument)
""",
        """\
        self._hooking.hook = name
        id(hook)
        try:
            return hook(argument)
""",
        "tests/pool/test_interrupts.py::test_at_every_point[run-everything-on]",
    ),
    Mutant(
        "discarded-statements-are-remembered",
        "fastpool/drivers/pg8000.py",
        "        conn._statement_nums.clear()\n",
        "",
        "tests/integration/test_session_state.py::test_names_of_statements_begin_again",
    ),
    Mutant(
        "retired-but-not-told",
        CORE,
        """\
        except BaseException:
            # An interrupt, perhaps just after the step: what is not told is not closed.
            self.house.disposed()
            raise
        return True
""",
        """\
        except KeyError:
            raise
        return True
""",
        "tests/core/test_interrupts.py::test_in_the_house",
    ),
]

FORK = [
    Mutant(
        "leases-live-on-in-a-child",
        CORE,
        """\
            entry.status = CLOSED
            entry.holder = 0
            entry.reason = "forked"
""",
        """\
            entry.status = CLOSED
            entry.reason = "forked"
""",
        "tests/core/test_fork.py::test_leases_are_dead",
    ),
    Mutant(
        "cursors-live-on-in-a-child",
        CORE,
        """\
            entry.reason = "forked"
            entry.state.serial = (entry.state.serial | 1) + 1
""",
        """\
            entry.reason = "forked"
""",
        "tests/core/test_fork.py::test_leases_are_dead",
    ),
    Mutant(
        "child-serves-the-parents-waiters",
        CORE,
        "mine = [waiter for waiter in self.waiters() if waiter.thread == me]",
        "mine = self.waiters()",
        "tests/core/test_fork.py::test_waiters_of_other_threads_are_gone",
    ),
    Mutant(
        "child-counts-what-the-parent-did",
        CORE,
        """\
        self.use_histogram = [0] * BUCKETS
        return connections
""",
        """\
        return connections
""",
        "tests/core/test_fork.py::test_counters_start_at_zero",
    ),
    Mutant(
        "lock-stays-taken-in-a-child",
        CORE,
        """\
            if not cython.compiled:
                entry.state.unlock()
""",
        "",
        "tests/core/test_locked.py::test_locks_that_a_fork_has_left_taken",
    ),
    Mutant(
        "child-ends-the-parents-sessions",
        "fastpool/drivers/_socket.py",
        """\
    for sock in list(_made):
        sock.close()
""",
        """\
    for sock in list(_made):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
        sock.close()
""",
        "tests/integration/test_fork.py::test_idle_and_held",
    ),
    Mutant(
        "child-keeps-sockets-of-dials",
        "fastpool/drivers/_socket.py",
        """\
        _made.add(sock)
        for option""",
        """\
        for option""",
        "tests/integration/test_fork.py::test_beside_a_dial",
    ),
    Mutant(
        "child-rings-the-parents-bell",
        HOUSE,
        """\
        self.disposed = self.keeper.wake
        for listener""",
        """\
        for listener""",
        "tests/pool/test_fork.py::test_fork_beside_a_busy_keeper",
    ),
    Mutant(
        "no-keeper-in-a-child",
        KEEPER,
        "        opener.on_thread = self.start\n",
        "",
        "tests/pool/test_fork.py::test_fork_beside_a_busy_keeper",
    ),
    Mutant(
        "listener-lives-on-in-a-child",
        HOUSE,
        "            listener.abandon()\n",
        "            pass\n",
        "tests/pool/test_fork.py::test_a_listener_is_closed_in_the_child",
    ),
    Mutant(
        "driver-stays-locked-in-a-child",
        HOUSE,
        "        self.driver.forked()\n",
        "",
        "tests/pool/test_fork.py::test_fork_beside_locks",
    ),
    Mutant(
        "fork-does-not-wait-for-threads",
        "fastpool/_fork.py",
        "    while not all(",
        "    while False and not all(",
        "tests/pool/test_fork.py::test_a_fork_waits_for_threads_to_end",
    ),
    Mutant(
        "thread-that-was-begun-unknown-to-forks",
        "fastpool/_fork.py",
        "        _threads.add(self)  # if it was taken out after the start, that was before this\n",
        "",
        "tests/pool/test_fork.py::test_an_interrupt_where_a_thread_is_started",
    ),
    Mutant(
        "keeper-is-gone-after-a-fork",
        KEEPER,
        """\
            try:
                self.start()
""",
        """\
            try:
                pass
""",
        "tests/pool/test_fork.py::test_idle_threads_end_before_a_fork_and_come_back",
    ),
    Mutant(
        "asked-for-during-a-fork-and-forgotten",
        OPENER,
        """\
        if not self._stopped and self.wanted:
            self._start()

""",
        "\n",
        "tests/pool/test_fork.py::test_asked_for_while_a_fork_is_made",
    ),
    Mutant(
        "lowered-ceiling-forgotten-by-a-fork",
        OPENER,
        "return self._core.deficit() > 0 or self._core.ceiling < self._core.max_size",
        "return self._core.deficit() > 0",
        "tests/pool/test_fork.py::test_a_full_server_is_asked_again_after_a_fork",
    ),
    Mutant(
        "start-undone-by-a-fork-is-waited-for",
        OPENER,
        """\
            # Before it is: a fork that undoes the start forgets this time.
            self._started_at = time.monotonic()
            try:
                start_thread(self._run)
""",
        """\
            try:
                start_thread(self._run)
                self._started_at = time.monotonic()
""",
        "tests/pool/test_fork.py::test_a_start_that_a_fork_has_undone",
    ),
    Mutant(
        "fork-cuts-the-backoff-short",
        OPENER,
        """\
        if self._pausing:
            return  # a fork, not a caller
""",
        "",
        "tests/pool/test_fork.py::test_forks_do_not_hurry_the_backoff",
    ),
    Mutant(
        "end-is-not-told",
        "fastpool/_fork.py",
        "atexit.register(_at_exit)\n",
        "",
        "tests/pool/test_life.py::test_interpreter_exit_beside_a_thread_that_begins",
    ),
    Mutant(
        "end-waits-for-no-thread",
        "fastpool/_fork.py",
        "    _wait(lambda: all(thread.ident for thread in list(_threads)), LAST_MOMENT)\n",
        "",
        "tests/pool/test_life.py::test_interpreter_exit_beside_a_thread_that_begins",
    ),
    Mutant(
        "thread-started-at-the-end",
        "fastpool/_fork.py",
        "        if _ending:",
        "        if False:",
        "tests/pool/test_life.py::test_interpreter_exit_beside_a_thread_that_begins",
    ),
]

# Those of tests/integration need a PgBouncer.
