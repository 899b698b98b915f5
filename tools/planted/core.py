"""The queue, checkout, return and slots."""

from __future__ import annotations

from .mutant import CORE, KEEPER, TURNAROUND, Mutant

WAITING = [
    Mutant(
        "waiter-is-not-woken",
        CORE,
        """\
                waiter.wake()
                return HANDED_ON
""",
        """\
                return HANDED_ON
""",
        "tests/core/test_waiters.py::test_hand_off_has_no_gap",
    ),
    Mutant(
        "last-come-first-served",
        CORE,
        """\
                waiter = self._queue.after
                waiter.after.before""",
        """\
                waiter = self._queue.before
                waiter.after.before""",
        "tests/core/test_waiters.py::test_each_serves_the_first",
    ),
    Mutant(
        "return-goes-past-the-queue",
        CORE,
        "elif self.waiting:",
        "elif self.waiting and not returned:",
        "tests/core/test_waiters.py::test_hand_off_has_no_gap",
    ),
    Mutant(
        "kept-down-below-beside-a-waiter",
        CORE,
        """\
                or self._queue.after is not self._queue
            ):
""",
        """\
            ):
""",
        "tests/core/test_states.py::test_put_below_serves_who_waits",
    ),
    Mutant(
        "timed-out-waiter-stays-in-line",
        CORE,
        """\
                waiter.after.before = waiter.before
                waiter.before.after = waiter.after
                waiter.status = AWAY
""",
        """\
                waiter.status = AWAY
""",
        "tests/core/test_waiters.py::test_gone_ones_get_nothing",
    ),
    Mutant(
        "waiter-leaves-what-it-was-given",
        CORE,
        "            if waiter.status == WAITING:\n",
        "            if waiter.status != AWAY:\n",
        "tests/core/test_waiters.py::test_given_at_the_last_moment",
    ),
    Mutant(
        "interrupted-waiter-swallows-its-connection",
        CORE,
        """\
        if interrupted:
            self._give_back(lease)
""",
        "",
        "tests/core/test_waiters.py::test_interrupted",
    ),
    Mutant(
        "unfit-find-costs-the-place",
        CORE,
        """\
            if since < 0:
                since = now
""",
        "",
        "tests/core/test_waiters.py::test_dead_idle_ones_cost_no_place",
    ),
    Mutant(
        "one-waiter-too-many",
        CORE,
        "if self.waiting >= self.max_waiting and not again:",
        "if self.waiting > self.max_waiting and not again:",
        "tests/core/test_waiters.py::test_max_waiting",
    ),
    Mutant(
        "closing-wakes-nobody",
        CORE,
        """\
            waiter.status = FAILED
            waiter.wake()
""",
        """\
            waiter.status = FAILED
""",
        "tests/core/test_waiters.py::test_interrupted_close_can_be_ended",
    ),
    Mutant(
        "waiters-fail-beside-a-lease",
        CORE,
        "if not closing and self.held + self.idle + self.leased > 0:",
        "if not closing and self.held + self.idle > 0:",
        "tests/core/test_waiters.py::test_refusal_waits_for_the_established",
    ),
    Mutant(
        "refusal-survives-success",
        CORE,
        "            _replaced, self.refusal = self.refusal, None\n",
        "            _replaced = self.refusal\n",
        "tests/core/test_waiters.py::test_refusal_ends",
    ),
    Mutant(
        "each-look-begins-a-dial",
        CORE,
        "wanted = self.waiting - late - self.connecting",
        "wanted = self.waiting - late",
        "tests/core/test_waiters.py::test_dials_in_flight_are_enough",
    ),
]

CHECKOUT = [
    Mutant(
        "min-idle-is-not-refilled",
        CORE,
        """\
                if self.idle < self.min_idle:
                    self.house.wanted()
""",
        "",
        "tests/core/test_acquire.py::test_refill_is_wanted",
    ),
    Mutant(
        "socket-is-not-asked",
        CORE,
        "            and not (self.polls and entry.fd >= 0 and poll(entry.fd) != 0)\n",
        "",
        "tests/core/test_acquire.py::test_suspect_socket_is_looked_at",
    ),
    Mutant(
        "age-does-not-count",
        CORE,
        """\
            if entry.expires < due:
                due = entry.expires
            since = now""",
        """\
            since = now""",
        "tests/pool/test_aging.py::test_never_handed_out_over_age",
    ),
    Mutant(
        "over-age-is-handed-out",
        TURNAROUND,
        """\
        if entry.expires <= now:
            return "max_lifetime"
""",
        "",
        "tests/pool/test_aging.py::test_never_handed_out_over_age",
    ),
    Mutant(
        "raising-hook-loses-the-slot",
        CORE,
        """\
        except BaseException:
            self._give_back(lease)
            self.suspect(entry)  # it may not have been looked at yet
            raise
""",
        """\
        except BaseException:
            raise
""",
        "tests/core/test_acquire.py::test_look_that_raises",
    ),
    Mutant(
        "hook-is-asked-and-not-heard",
        TURNAROUND,
        """\
        if hook is not None and not self.hook("before_acquire", hook, entry.conn, entry.state):
            return "before_acquire"
""",
        """\
        if hook is not None:
            self.hook("before_acquire", hook, entry.conn, entry.state)
""",
        "tests/pool/test_hooks.py::test_before_acquire_false_takes_the_next",
    ),
    Mutant(
        "failed-ping-passes",
        TURNAROUND,
        """\
                self.liveness.lost(entry)
            return "dead"

    def _check_role""",
        """\
                self.liveness.lost(entry)
            return None

    def _check_role""",
        "tests/pool/test_limits.py::test_ping_check",
    ),
    Mutant(
        "two-calls-inside",
        CORE,
        """\
            if self.flags & 1:
                return OCCUPIED
""",
        "",
        "tests/core/test_state.py::test_second_call_is_refused",
    ),
]

RETURN = [
    Mutant(
        "second-release-counts",
        CORE,
        """\
            if entry.holder != holder:
                return NOT_YOURS
""",
        "",
        "tests/core/test_release.py::test_second_release_does_nothing",
    ),
    Mutant(
        "dropped-lease-is-lost",
        CORE,
        "abs(entry.holder) == token(self)",
        "entry.holder == -token(self)",
        "tests/core/test_release.py::test_lost_lease_is_taken_back",
    ),
    Mutant(
        "handed-on-beneath-a-call",
        CORE,
        "            if state.flags or state.stray or state.calls or (",
        "            if state.flags or state.stray or (",
        "tests/pool/test_limits.py::test_a_return_beneath_a_call",
    ),
    Mutant(
        "next-users-work-is-committed",
        CORE,
        """\
            if core.begin_call(entry, token(self)):
                try:
                    core.house.finish(entry)
                finally:
                    core.end_call(entry)
""",
        """\
            if entry.holder == token(self):
                core.house.finish(entry)
""",
        "tests/pool/test_limits.py::test_a_return_beneath_a_commit",
    ),
    Mutant(
        "call-slips-into-a-return",
        CORE,
        "            state.share(self)",
        "            pass",
        "tests/core/test_locked.py::test_states_are_locked",
    ),
    Mutant(
        "serial-stays-at-a-return",
        CORE,
        """\
                entry.holder = 0
                state.serial = (state.serial | 1) + 1
                entry.since = since""",
        """\
                entry.holder = 0
                entry.since = since""",
        "tests/core/test_state.py::test_not_leased",
    ),
    Mutant(
        "serial-stays-at-a-hand-off",
        CORE,
        """\
                entry.holder = waiter.token
                state.serial = (state.serial | 1) + 2
""",
        """\
                entry.holder = waiter.token
""",
        "tests/core/test_state.py::test_serial_of_an_earlier_lease",
    ),
    Mutant(
        "method-outlives-its-lease",
        CORE,
        """\
            if entry.holder != holder:
                return False
            state.calls += 1
""",
        """\
            state.calls += 1
""",
        "tests/core/test_lease.py::test_method_dies_with_the_lease",
    ),
    Mutant(
        "unclean-connection-is-kept",
        CORE,
        "if state.flags or state.stray or state.calls or (self.settles and returned):",
        "if state.stray or state.calls or (self.settles and returned):",
        "tests/core/test_release.py::test_unsettled_is_settled",
    ),
    Mutant(
        "drained-connection-is-kept",
        CORE,
        """\
            elif entry.generation != self.generation:
                verdict = STALE
""",
        "",
        "tests/core/test_release.py::test_not_kept",
    ),
    Mutant(
        "one-use-too-many",
        CORE,
        "elif entry.uses >= self.max_uses:",
        "elif entry.uses > self.max_uses:",
        "tests/core/test_release.py::test_not_kept",
    ),
    Mutant(
        "surplus-is-kept",
        CORE,
        """\
            elif self.idle >= self.max_idle:
                verdict = SURPLUS
""",
        "",
        "tests/core/test_release.py::test_not_kept",
    ),
    Mutant(
        "reset-that-raises-keeps-the-slot",
        CORE,
        """\
            self.retire(entry, holder, "error")
            raise
""",
        """\
            raise
""",
        "tests/core/test_release.py::test_unsettled_for_good",
    ),
    Mutant(
        "raising-block-commits",
        CORE,
        "if entry.state.flags != 0 and exc_type is None and self._terms.commits:",
        "if entry.state.flags != 0 and self._terms.commits:",
        "tests/core/test_release.py::test_block_that_raises_does_not_commit",
    ),
    Mutant(
        "release-commits",
        CORE,
        "if entry.state.flags != 0 and exc_type is None and self._terms.commits:",
        "if entry.state.flags != 0 and exc_type is None:",
        "tests/core/test_release.py::test_acquired_block_does_not_commit",
    ),
    Mutant(
        "no-rollback-at-a-return",
        TURNAROUND,
        """\
        if state.flags & TRANSACTION:
            self.rollback(entry)
        if state.flags & SESSION:
""",
        """\
        if state.flags & SESSION:
""",
        "tests/pool/test_transactions.py::test_release_only_rolls_back",
    ),
    Mutant(
        "rollback-on-a-wire-out-of-step",
        TURNAROUND,
        """\
        if state.flags & (BUSY | DIRTY | CLOSED) or state.calls:
            return "broken"
        if""",
        """\
        if""",
        "tests/pool/test_limits.py::test_nothing_is_said_out_of_step",
    ),
    Mutant(
        "smart-reset-discards-nothing",
        TURNAROUND,
        'if self.config.reset != "smart":',
        "if True:",
        "tests/pool/test_limits.py::test_reset",
    ),
    Mutant(
        "discard-undoes-the-preparation",
        TURNAROUND,
        """\
        self.driver.discard(entry.conn, self._patience(entry))
        with self._own_time(entry):
            self.prepare(entry.conn, entry.state)
""",
        """\
        self.driver.discard(entry.conn, self._patience(entry))
""",
        "tests/pool/test_hooks.py::test_after_connect_runs_again_after_discard",
    ),
    Mutant(
        "client-side-state-stays",
        TURNAROUND,
        """\
            self.driver.restore(entry.conn)
        return "broken" if state.flags else None
""",
        """\
            state.flags &= ~LOCAL
        return "broken" if state.flags else None
""",
        "tests/pool/test_limits.py::test_client_side_state_is_put_back",
    ),
    Mutant(
        "hook-leaves-its-transaction-open",
        TURNAROUND,
        """\
        if state.flags & TRANSACTION:
            self.driver.control(conn, "COMMIT")
""",
        "",
        "tests/pool/test_limits.py::test_reset_by_function",
    ),
    Mutant(
        "aborted-block-passes-for-done",
        TURNAROUND,
        """\
            self._try_rollback(entry)
            raise aborted()
        elif flags & TRANSACTION:
""",
        """\
            self._try_rollback(entry)
        elif flags & TRANSACTION:
""",
        "tests/pool/test_transactions.py::test_an_aborted_block_says_so",
    ),
    Mutant(
        "lost-commit-passes-for-undone",
        TURNAROUND,
        'raise unknown(message, outcome="unknown") from error',
        'raise unknown(message, outcome="not_sent") from error',
        "tests/pool/test_transactions.py::test_an_unanswered_commit",
    ),
    Mutant(
        "inner-rollback-undoes-everything",
        "fastpool/_transaction.py",
        """\
            rollback(entry, f"ROLLBACK TO SAVEPOINT {self._savepoint}")
            rollback(entry, f"RELEASE SAVEPOINT {self._savepoint}")
""",
        """\
            rollback(entry)
""",
        "tests/pool/test_transactions.py::test_nested_transactions",
    ),
]

SLOTS = [
    Mutant(
        "two-threads-enter-one-block",
        CORE,
        """\
            if lease._entry is not NO_ENTRY:
                return False
""",
        "",
        "tests/core/test_lease.py::test_one_block_entered_in_the_wait_of_another",
    ),
    Mutant(
        "idle-since-the-acquire",
        CORE,
        """\
                entry.since = now
                entry.status = HELD
""",
        """\
                entry.status = HELD
""",
        "tests/core/test_release.py::test_idle_since_its_return",
    ),
    Mutant(
        "attributes-reach-the-next-user",
        CORE,
        "if not hasattr(conn, name):",
        "if conn is None:",
        "tests/core/test_lease.py::test_nothing_is_left_for_the_next",
    ),
    Mutant(
        "closing-connection-frees-its-slot",
        CORE,
        """\
            if wanted > self.ceiling - self.size:
                wanted = self.ceiling - self.size
""",
        """\
            lacking = self.max_size - (self.connecting + self.held + self.idle + self.leased)
            if wanted > lacking:
                wanted = lacking
""",
        "tests/core/test_states.py::test_closing_takes_its_slot",
    ),
    Mutant(
        "failed-dial-keeps-its-slot",
        CORE,
        """\
            self.connecting -= 1
            self.size -= 1
            self.missed = 0
""",
        """\
            self.connecting -= 1
            self.missed = 0
""",
        "tests/core/test_states.py::test_failed_dial",
    ),
    Mutant(
        "detached-connection-keeps-its-slot",
        CORE,
        """\
            self.leased -= 1
            self.size -= 1
            entry.status = CLOSED
""",
        """\
            self.leased -= 1
            entry.status = CLOSED
""",
        "tests/core/test_states.py::test_detach",
    ),
    Mutant(
        "anybody-retires",
        CORE,
        "if entry.holder != holder or entry.status == CONNECTING or entry.status >= CLOSING:",
        "if entry.status == CONNECTING or entry.status >= CLOSING:",
        "tests/core/test_states.py::test_wrong_holder",
    ),
    Mutant(
        "drain-forgets-dials-in-flight",
        CORE,
        """\
            entry.fd = fd
            entry.status = HELD
""",
        """\
            entry.fd = fd
            entry.generation = self.generation
            entry.status = HELD
""",
        "tests/core/test_waiters.py::test_drain_during_a_dial",
    ),
    Mutant(
        "interrupted-close-is-never-done",
        CORE,
        """\
        except BaseException:
            # An interrupt, perhaps just after the step: what is not told is not closed.
            self.house.disposed()
            raise
""",
        """\
        except Exception:
            # An interrupt, perhaps just after the step: what is not told is not closed.
            self.house.disposed()
            raise
""",
        "tests/core/test_interrupts.py::test_at_every_call",
    ),
    Mutant(
        "trimmed-below-min-size",
        KEEPER,
        """\
        surplus = min(
            core.idle + core.leased + core.held - core.min_size, core.idle - core.min_idle
        )
""",
        """\
        surplus = core.idle - core.min_idle
""",
        "tests/pool/test_aging.py::test_idle_ones_are_trimmed",
    ),
    Mutant(
        "old-goes-before-new-comes",
        KEEPER,
        "if entry.expires <= now or spare > 0 or full:",
        "if entry.expires - lead <= now or spare > 0 or full:",
        "tests/pool/test_aging.py::test_replaced_before_it_expires",
    ),
    Mutant(
        "unanswered-ping-keeps-the-connection",
        KEEPER,
        "                    self._core.retire(entry, entry.holder, reason)\n",
        "                    self._core.put_below(entry)\n",
        "tests/pool/test_aging.py::test_what_fails_its_ping_is_replaced",
    ),
    Mutant(
        "leak-is-logged-at-each-look",
        KEEPER,
        "if self._leaks.get(entry) != entry.uses:",
        "if entry not in self._leaks or now > self._leaks[entry]:",
        "tests/pool/test_aging.py::test_a_leak_is_logged_once",
    ),
    Mutant(
        "silent-server-keeps-the-slot",
        KEEPER,
        "deadline = time.monotonic() + self.config.close_timeout",
        "deadline = time.monotonic() + self.config.health_check_period",
        "tests/pool/test_life.py::test_a_server_that_never_closes",
    ),
    Mutant(
        "free-slot-is-not-told-of",
        KEEPER,
        """\
        self._core.bury(closing.entry)
        self._opener.wake()
""",
        """\
        self._core.bury(closing.entry)
""",
        "tests/pool/test_life.py::test_a_slot_is_taken_until_the_server_has_closed",
    ),
]
