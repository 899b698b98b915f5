"""Defects that the tests must notice; ``tools/mutants.py`` plants them.

Each is a slip that somebody could make: a line forgotten, the wrong setting, a
comparison off by one. ``right`` is text that stands exactly once in ``file``, and
``wrong`` takes its place. ``test`` is the quickest test that is about it. Whoever
changes such a line changes it here too: a text that is not found is a failure.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["MUTANTS", "Mutant"]


class Mutant(NamedTuple):
    """One defect."""

    name: str
    file: str
    """Where it is planted, from the project's root."""
    right: str
    wrong: str
    test: str
    """A test's node id, as pytest takes it."""


CORE = "fastpool/_core.pyx"
TURNAROUND = "fastpool/_turnaround.py"
KEEPER = "fastpool/_keeper.py"
OPENER = "fastpool/_opener.py"
POOL = "fastpool/pool.py"
CONFIG = "fastpool/config.py"
WIRE = "fastpool/drivers/_wire.py"
DEADLINE = "fastpool/_deadline.py"
RETRY = "fastpool/retry.py"
POOL_TESTS = "tests/pool/test_deadlines.py::"
SERVER_TESTS = "tests/integration/test_deadlines.py::"
HOSTS = "fastpool/_hosts.py"
LIVENESS = "fastpool/_liveness.py"
HOUSE = "fastpool/_house.py"
DIAGNOSIS = "fastpool/_diagnosis.py"
OPS_TESTS = "tests/ops/"
HEALTH = "fastpool/ops/health.py"
HTTP = "fastpool/ops/http.py"
SERVER = "fastpool/ops/_server.py"
HISTORY = "fastpool/ops/_history.py"
METRICS = "fastpool/ops/metrics.py"

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
        "elif self.waiting > 0:",
        "elif self.waiting > 0 and not returned:",
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
        "(entry.holder == mine or entry.holder == -mine)",
        "entry.holder == -mine",
        "tests/core/test_release.py::test_lost_lease_is_taken_back",
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
        self._lease._held()
        return self._method(""",
        """\
        return self._method(""",
        "tests/core/test_lease.py::test_method_dies_with_the_lease",
    ),
    Mutant(
        "unclean-connection-is-kept",
        CORE,
        "if state.flags != 0 or state.stray != 0 or (self.settles and returned):",
        "if state.stray != 0 or (self.settles and returned):",
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
        if state.flags & (BUSY | DIRTY | CLOSED):
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
            raise _aborted()
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
        TURNAROUND,
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

DIALLING = [
    Mutant(
        "no-jitter",
        OPENER,
        "limit - random.uniform(0, jitter)",
        "limit - jitter",
        "tests/pool/test_aging.py::test_lifetime_is_drawn_once",
    ),
    Mutant(
        "lifetime-is-drawn-again",
        "fastpool/_house.py",
        "if any(getattr(config, name) != getattr(before, name) for name in ages):",
        "if config.max_lifetime is not None:",
        "tests/pool/test_aging.py::test_lifetime_is_drawn_once",
    ),
    Mutant(
        "backoff-does-not-grow",
        OPENER,
        "first * 2.0 ** min(self._failures, 30), longest",
        "first, longest",
        "tests/pool/test_dialling.py::test_backoff_grows",
    ),
    Mutant(
        "no-backoff",
        OPENER,
        "self._not_before = now + (max(pause, PERMANENT_FOR) if permanent else pause)",
        "self._not_before = now + (PERMANENT_FOR if permanent else 0.0)",
        "tests/pool/test_dialling.py::test_few_dials_while_the_database_is_down",
    ),
    Mutant(
        "lowered-concurrency-is-not-kept",
        OPENER,
        "while not self._stopped and not self._leaves():",
        "while not self._stopped:",
        "tests/pool/test_dialling.py::test_concurrency_changes_on_the_living_pool",
    ),
    Mutant(
        "hopeless-dial-is-waited-for",
        OPENER,
        """\
        if permanent:
            self._core.refuse(error, self._core.now() + PERMANENT_FOR)
        elif""",
        """\
        if""",
        "tests/pool/test_dialling.py::test_a_permanent_failure_of_one_host_is_final",
    ),
    Mutant(
        "dead-host-is-tried-first",
        OPENER,
        "                self._hosts.failed(index, cost, now())\n",
        "",
        "tests/pool/test_dialling.py::test_hosts_are_tried_in_turn",
    ),
    Mutant(
        "failed-preparation-is-served",
        OPENER,
        '            self._core.retire(entry, entry.holder, "after_connect")\n',
        "            self._core.put(entry)\n",
        "tests/pool/test_hooks.py::test_after_connect_error_closes_the_connection",
    ),
    Mutant(
        "settings-apply-one-by-one",
        POOL,
        "        self._house.reconfigure(self.config.replace(**settings))\n",
        """\
        for name, value in settings.items():
            self._house.reconfigure(self.config.replace(**{name: value}))
""",
        "tests/pool/test_control.py::test_reconfigure_all_or_nothing",
    ),
]

SETTINGS = [
    Mutant(
        "relation-is-not-checked",
        CONFIG,
        '    ("min_size", "max_size", "lower min_size or raise max_size"),\n',
        "",
        "tests/test_config.py::test_a_relation",
    ),
    Mutant(
        "zero-seconds-is-a-limit",
        CONFIG,
        "            and (zero or value)\n",
        "",
        "tests/test_config.py::test_zero_seconds_is_no_limit_to_set",
    ),
    Mutant(
        "secret-setting-is-shown",
        CONFIG,
        '"{" + ", ".join(f"{key!r}: ..." for key in value) + "}"',
        "repr(dict(value))",
        "tests/test_config.py::test_repr_shows_no_secret",
    ),
    Mutant(
        "password-is-not-decoded",
        "fastpool/conninfo/_libpq.py",
        'found["password"] = _decode(password, "password")',
        'found["password"] = password',
        "tests/test_conninfo.py::test_database_config_round_trip",
    ),
    Mutant(
        "readable-password-file-is-used",
        "fastpool/conninfo/_service.py",
        "mode & (stat.S_IRWXG | stat.S_IRWXO)",
        "mode & stat.S_IRWXO",
        "tests/test_conninfo.py::test_a_password_file_that_others_may_read",
    ),
    Mutant(
        "zero-duration-is-a-number",
        "fastpool/conninfo/_values.py",
        "return seconds or None",
        "return seconds",
        "tests/test_conninfo.py::test_durations",
    ),
    Mutant(
        "password-in-a-repr",
        "fastpool/conninfo/_db_env.py",
        '{**vars(self), "password": "***"}',
        "vars(self)",
        "tests/test_conninfo.py::test_database_config_hides_its_password",
    ),
    Mutant(
        "lost-statement-is-repeated",
        "fastpool/retry.py",
        "return _Verdict(True, not connecting and not answered)",
        "return _Verdict(True, False)",
        "tests/test_retry.py::test_may_have_run",
    ),
    Mutant(
        "interrupt-is-retried-by-its-cause",
        "fastpool/retry.py",
        """\
        if not isinstance(link, Exception):
            return _Verdict(False, True)""",
        """\
        if isinstance(link, KeyboardInterrupt):
            return _Verdict(False, True)""",
        "tests/test_retry.py::test_whoever_gave_up_wins",
    ),
]

# These tests start a server.
DRIVER = [
    Mutant(
        "interrupted-wire-passes-for-clean",
        WIRE,
        """\
            after |= DIRTY
            self._sent = context.statement
""",
        """\
            self._sent = context.statement
""",
        "tests/drivers/test_wire.py::test_interrupt_in_mid_read_is_dirty",
    ),
    Mutant(
        "parameter-fails-after-bytes-went-out",
        WIRE,
        """\
        context.sync_sent = stream is None
        message = b"".join(
            (
                self._parse(b"\\0", statement, oids),
                self._bind""",
        """\
        context.sync_sent = stream is None
        self._state.enter(serial)
        self._send(self._parse(b"\\0", statement, oids))
        self._state.leave(self._state.flags & ~BUSY | DIRTY)
        message = b"".join(
            (
                self._bind""",
        "tests/drivers/test_wire.py::test_parameter_that_fails_sends_nothing",
    ),
    Mutant(
        "failing-copy-source-breaks-off",
        WIRE,
        """\
                context.stream_error = error
                end = """,
        """\
                raise
                end = """,
        "tests/drivers/test_wire.py::test_copy_from_a_failing_stream_stays_in_step",
    ),
    Mutant(
        "payload-is-ascii",
        WIRE,
        'payload.decode(encoding, "replace")',
        'payload.decode("ascii")',
        "tests/drivers/test_wire.py::test_notify_need_not_be_ascii",
    ),
    Mutant(
        "statement-is-prepared-first",
        WIRE,
        "        context = _Exchange(statement, stream=stream)\n",
        """\
        if stream is None:
            name, columns, input_funcs = self.prepare_statement(statement, oids, serial)
            params = make_params(self.py_types, vals)
            return self.execute_named(name, params, columns, input_funcs, statement, serial)
        context = _Exchange(statement, stream=stream)
""",
        "tests/drivers/test_wire.py::test_each_statement_is_one_round_trip",
    ),
    Mutant(
        "cursor-outlives-its-lease",
        WIRE,
        "self.serial = con._state.serial if con._state.serial & 1 else -1",
        "self.serial = 0",
        "tests/drivers/test_wire.py::test_nothing_of_a_lease_outlives_it",
    ),
    Mutant(
        "closed-query-goes-on",
        WIRE,
        "if flags & (BUSY | DIRTY) and not told:",
        "if flags & BUSY and not told:",
        "tests/drivers/test_connect.py::test_close_of_an_interrupted_connection_cancels_its_query",
    ),
    Mutant(
        "limit-holds-for-each-read",
        "fastpool/drivers/_socket.py",
        """\
                finally:
                    sock.settimeout(None)
""",
        """\
                finally:
                    sock.settimeout(None)
                    sock.limit = time.monotonic() + left
""",
        "tests/drivers/test_connect.py::test_deadline_holds_at_every_stage",
    ),
    Mutant(
        "host-name-is-not-verified",
        "fastpool/drivers/_tls.py",
        'context.check_hostname = mode == "verify-full"',
        "context.check_hostname = False",
        "tests/drivers/test_connect.py::test_verify_full_checks_the_name_and_verify_ca_does_not",
    ),
    Mutant(
        "required-binding-is-optional",
        WIRE,
        """\
        if not required:
            known.append(b"SCRAM-SHA-256")
""",
        """\
        known.append(b"SCRAM-SHA-256")
""",
        "tests/drivers/test_connect.py::test_channel_binding",
    ),
]

DEADLINES = [
    Mutant(
        "deadline-ends-with-the-wait",
        CORE,
        "            entry.state.deadline = until\n",
        "            entry.state.deadline = math.inf\n",
        POOL_TESTS + "test_a_deadline_counts_from_the_checkout",
    ),
    Mutant(
        "deadline-does-not-bound-the-wait",
        CORE,
        "min(since + timeout, limit)",
        "since + timeout",
        POOL_TESTS + "test_the_wait_ends_with_the_deadline",
    ),
    Mutant(
        "inner-deadline-may-be-later",
        DEADLINE,
        "_current.set(min(current(), time.monotonic() + self._seconds))",
        "_current.set(time.monotonic() + self._seconds)",
        POOL_TESTS + "test_inner_ones_only_shorten",
    ),
    Mutant(
        "suspicion-ends-with-a-late-caller",
        CORE,
        "            self.suspect(entry)  # it may not have been looked at yet\n",
        "",
        POOL_TESTS + "test_a_suspect_stays_one",
    ),
    Mutant(
        "detached-under-a-dead-deadline",
        POOL,
        "        entry.state.deadline = math.inf  # the lease's, which is over\n",
        "",
        "tests/pool/test_control.py::test_detach_ends_the_deadline",
    ),
    Mutant(
        "invalidates-the-next-lease",
        POOL,
        "self._core.retire(entry, id(conn), ",
        "self._core.retire(entry, entry.holder, ",
        "tests/pool/test_control.py::test_released_in_between",
    ),
    Mutant(
        "cancelled-procedure-has-done-nothing",
        WIRE,
        'if context.completed or (not inside and _COMMITS.match(context.statement or ""))',
        "if context.completed",
        SERVER_TESTS + "test_a_procedure_may_have_committed",
    ),
    Mutant(
        "statement-slips-into-the-next-lease",
        WIRE,
        "        serial = self._state.serial\n        if not params and stream is None:",
        "        serial = 0\n        if not params and stream is None:",
        "tests/drivers/test_wire.py::test_released_while_parameters_become_text",
    ),
    Mutant(
        "a-long-deadline-comes-early",
        "fastpool/drivers/_socket.py",
        "sock.settimeout(min(left, _AT_ONCE))",
        "sock.settimeout(left)",
        SERVER_TESTS + "test_a_deadline_beyond_the_systems_clocks",
    ),
    Mutant(
        "commit-after-the-deadline",
        TURNAROUND,
        """\
        if left <= 0:
            self._try_rollback(entry)
""",
        """\
        if left == -math.inf:
            self._try_rollback(entry)
""",
        POOL_TESTS + "test_too_late_to_commit_is_rolled_back",
    ),
    Mutant(
        "commit-waits-for-ever",
        TURNAROUND,
        "None if left == math.inf else left + self.config.cancel_budget",
        "None",
        POOL_TESTS + "test_a_commit_without_an_answer_is_unknown",
    ),
    Mutant(
        "return-outlasts-the-deadline",
        TURNAROUND,
        "return min(_ANSWER, max(self.left(entry), 0.0) + self.config.cancel_budget)",
        "return _ANSWER",
        POOL_TESTS + "test_a_return_does_not_outlast_the_deadline",
    ),
    Mutant(
        "hooks-at-return-are-late",
        TURNAROUND,
        """\
        with _deadline.lifted():
            yield
""",
        """\
        yield
""",
        POOL_TESTS + "test_hooks_at_return_have_their_own_time",
    ),
    Mutant(
        "too-late-to-ask-is-dead",
        TURNAROUND,
        """\
            if left <= 0:
                raise DeadlineExceeded""",
        """\
            if left == -math.inf:
                raise DeadlineExceeded""",
        POOL_TESTS + "test_with_no_time_left_nothing_is_checked",
    ),
    Mutant(
        "retry-sleeps-past-the-deadline",
        RETRY,
        "if in_time and time.monotonic() + pause < _deadline.current():",
        "if in_time:",
        POOL_TESTS + "test_retries_respect_it",
    ),
    Mutant(
        "cancel-of-a-released-lease",
        CORE,
        """\
            if entry.holder != holder:
                return False
            entry.state.stray += 1
""",
        """\
            entry.state.stray += 1
""",
        POOL_TESTS + "test_a_released_lease_cancels_nobody",
    ),
    Mutant(
        "handed-on-with-a-cancel-under-way",
        CORE,
        "if state.flags != 0 or state.stray != 0 or (self.settles and returned):",
        "if state.flags != 0 or (self.settles and returned):",
        POOL_TESTS + "test_nobody_gets_it_before_the_cancel_has_ended",
    ),
    Mutant(
        "cancel-counts-as-done",
        TURNAROUND,
        "entry.state.cancelled(proven)",
        "entry.state.cancelled(True)",
        POOL_TESTS + "test_lost_sight_of_is_closed",
    ),
    Mutant(
        "late-statement-is-not-cancelled",
        WIRE,
        "drive(self._cancelling(), now + self._cancel_budget / 2)",
        "pass",
        SERVER_TESTS + "test_a_statement_is_cancelled_in_time",
    ),
    Mutant(
        "late-commit-is-cancelled",
        WIRE,
        """\
        if _END.match(context.statement or ""):
            return
""",
        "",
        SERVER_TESTS + "test_a_commit_is_never_cancelled",
    ),
    Mutant(
        "limit-outlives-its-statement",
        WIRE,
        "            sock.limit = sock.overtime = None\n",
        "            sock.overtime = None\n",
        SERVER_TESTS + "test_a_deadline_ends_with_its_block",
    ),
    Mutant(
        "late-rollback-is-refused",
        WIRE,
        """if time.monotonic() >= context.limit and not _UNDO.match(context.statement or ""):""",
        "if time.monotonic() >= context.limit:",
        SERVER_TESTS + "test_a_late_block_is_rolled_back",
    ),
    Mutant(
        "copy-outlasts-the-deadline",
        WIRE,
        "if context.overtime:  # the server",
        "if False:  # the server",
        SERVER_TESTS + "test_copy_under_a_deadline",
    ),
]

TIME_LIMITS = [
    Mutant(
        "ping-outlasts-its-caller",
        TURNAROUND,
        "patience = max(min(limit - now, left), _SHORTEST_PING)",
        "patience = math.inf",
        "tests/integration/test_timeouts.py::test_hung_ping",
    ),
    Mutant(
        "ping-by-hand-has-all-the-time",
        POOL,
        "max(0.001, deadline - time.monotonic())",
        "timeout",
        "tests/integration/test_timeouts.py::test_hung_ping_after_a_wait",
    ),
    Mutant(
        "each-look-has-all-the-time",
        CORE,
        "            limit = since + timeout\n",
        "            limit = self.now() + timeout\n",
        "tests/core/test_acquire.py::test_look_after_a_wait_has_the_rest",
    ),
    Mutant(
        "late-caller-goes-on-looking",
        CORE,
        "        if self._coarse() >= limit:\n",
        "        if self._coarse() > limit + timeout:\n",
        "tests/core/test_acquire.py::test_no_look_after_the_callers_time",
    ),
    Mutant(
        "drip-feeds-a-dial",
        "fastpool/drivers/pg8000.py",
        "            sock.limit = None if limit == math.inf else limit\n",
        "            sock.settimeout(limit - time.monotonic())\n",
        "tests/integration/test_timeouts.py::test_dial[dripping_handshake]",
    ),
    Mutant(
        "name-resolution-without-a-limit",
        "fastpool/drivers/_socket.py",
        "if not lookup.done.wait(max(0.0, left)):",
        "if not lookup.done.wait():",
        "tests/integration/test_timeouts.py::test_dial[hung_name_resolution]",
    ),
    Mutant(
        "no-user-timeout",
        "fastpool/drivers/_socket.py",
        '    "tcp_user_timeout": "TCP_USER_TIMEOUT",\n',
        '    "tcp_user_timeout": "TCP_USER_TIMEOUT_",\n',
        "tests/integration/test_timeouts.py::test_user_timeout",
    ),
    Mutant(
        "keepalives-of-the-system",
        "fastpool/drivers/_socket.py",
        '    "keepalives_idle": "TCP_KEEPIDLE",\n',
        '    "keepalives_idle": "TCP_KEEPIDLE_",\n',
        "tests/integration/test_timeouts.py::test_keepalives",
    ),
]

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
        "tests/pool/test_matrix.py::test_whole_whatever_happens[slow-in-a-hurry]",
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
        "tests/pool/test_interrupts.py::test_at_every_point[given_up-plain]",
    ),
]

FAILOVER = [
    Mutant(
        "second-proof-may-be-the-first-again",
        HOSTS,
        "second = health.witness not in (0, witness) and",
        "second = health.witness != 0 and",
        "tests/test_hosts.py::test_second_proof",
    ),
    Mutant(
        "proofs-never-age",
        HOSTS,
        "and now - health.witnessed <= WINDOW",
        "and now - health.witnessed <= WINDOW * 60",
        "tests/test_hosts.py::test_second_proof",
    ),
    Mutant(
        "one-proof-moves-the-dials",
        HOSTS,
        "(UP, PROOF): SUSPECT,",
        "(UP, PROOF): DOWN,",
        "tests/test_hosts.py::test_suspicion_does_not_move_the_dials",
    ),
    Mutant(
        "black-hole-is-dialled-by-all",
        HOSTS,
        "self._health[index] = health._replace(until=now + health.cost)",
        "pass",
        "tests/test_hosts.py::test_slow_failures_are_not_repeated_at_once",
    ),
    Mutant(
        "session-time-out-concerns-the-host",
        HOSTS,
        'frozenset({"57P01", "57P02", "57P03", ""})',
        'frozenset({"57P01", "57P02", "57P03", "57P05", ""})',
        "tests/pool/test_liveness.py::test_one_sessions_own_end",
    ),
    Mutant(
        "old-ends-doubt-new-connections",
        LIVENESS,
        "if other.host == entry.host and other.born < born_before:",
        "if other.host == entry.host:",
        "tests/pool/test_liveness.py::test_old_ends_cost_new_connections_nothing",
    ),
    Mutant(
        "suspicion-spreads-to-other-hosts",
        LIVENESS,
        "if other.host == entry.host and other.born < born_before:",
        "if other.born < born_before:",
        "tests/pool/test_liveness.py::test_other_hosts_are_not_concerned",
    ),
    Mutant(
        "replica-is-left-for-a-refused-write",
        TURNAROUND,
        "if state.flags & READONLY and self.liveness.minds_read_only:",
        "if state.flags & READONLY:",
        "tests/pool/test_liveness.py::test_a_replica_may_refuse_writes",
    ),
    Mutant(
        "end-in-use-is-not-judged",
        TURNAROUND,
        """\
        if state.flags & CLOSED:
            self.liveness.lost(entry)
        if state.flags & (BUSY""",
        """\
        if state.flags & (BUSY""",
        "tests/pool/test_liveness.py::test_an_end_in_use_is_judged_at_the_return",
    ),
    Mutant(
        "server-that-refused-a-write-is-kept",
        WIRE,
        "        if self._refused:\n            flags |= READONLY\n",
        "",
        "tests/drivers/test_last_word.py::test_read_only_by_default",
    ),
    Mutant(
        "read-only-transaction-accuses-the-server",
        WIRE,
        'self._refused |= now("in_hot_standby") == "on" or (',
        'self._refused |= now("in_hot_standby") == "off" or (',
        "tests/integration/test_failover.py::test_read_only_transactions_cost_nothing",
    ),
    Mutant(
        "role-is-not-looked-at",
        TURNAROUND,
        "return self.settle_flags(entry) or self._check_role(entry)",
        "return self.settle_flags(entry)",
        "tests/pool/test_liveness.py::test_a_changed_server_is_seen_without_a_write",
    ),
    Mutant(
        "shutting-down-server-is-held-up",
        OPENER,
        """\
                if self._driver.sqlstate(error) == "57P03":
                    self._turnaround.liveness.leaving(index)
""",
        "",
        "tests/pool/test_liveness.py::test_idle_ones_go_at_once_when_the_server_shuts_down",
    ),
    Mutant(
        "shutting-down-server-waits-for-leases",
        CORE,
        "            entry.generation = -1\n",
        "            entry.reason = entry.reason\n",
        "tests/pool/test_liveness.py::test_who_shuts_down_gets_its_connections_back",
    ),
    Mutant(
        "full-server-is-hammered",
        CORE,
        """\
            if wanted > self.ceiling - self.size:
                wanted = self.ceiling - self.size
""",
        """\
            if wanted > self.max_size - self.size:
                wanted = self.max_size - self.size
""",
        "tests/pool/test_liveness.py::test_a_full_server_is_not_hammered",
    ),
    Mutant(
        "full-server-stays-full",
        OPENER,
        """\
        if left <= 0:
            self._core.regrow()
        return""",
        """\
        return""",
        "tests/pool/test_liveness.py::test_a_full_server_is_asked_again",
    ),
    Mutant(
        "dial-for-who-is-about-to-leave",
        CORE,
        "wanted = self.waiting - late - self.connecting",
        "wanted = self.waiting - self.connecting",
        "tests/core/test_hosts_in_trouble.py::test_no_dial_for_who_has_no_time",
    ),
    Mutant(
        "stale-token-is-a-wrong-password",
        OPENER,
        'if not renewable or self._driver.sqlstate(error) != "28P01":',
        "if error is not None:",
        "tests/pool/test_liveness.py::test_stale_token_is_renewed_once",
    ),
    Mutant(
        "resolvers-pile-up",
        "fastpool/drivers/_socket.py",
        "    if len(latest) < _RESOLVERS:\n",
        "    if True:\n",
        "tests/drivers/test_last_word.py::test_resolvers_do_not_pile_up",
    ),
    Mutant(
        "nameless-dial-waits-for-ever",
        "fastpool/drivers/_socket.py",
        "left = min(deadline - time.monotonic(), _RESOLVED)",
        "left = min(deadline - time.monotonic(), 1000.0)",
        "tests/drivers/test_last_word.py::test_no_dial_waits_for_a_name_for_ever",
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
        "fork-cuts-the-backoff-short",
        OPENER,
        """\
        if self._pausing:
            return  # a fork, not a caller
""",
        "",
        "tests/pool/test_fork.py::test_forks_do_not_hurry_the_backoff",
    ),
]

# Those of tests/integration need a PgBouncer.
POOLER = [
    Mutant(
        "somebody-elses-session-is-reset",
        TURNAROUND,
        "            elif self.driver.pooled(entry.conn):\n",
        "            elif False:\n",
        "tests/pool/test_pgbouncer.py::test_smart_reset",
    ),
    Mutant(
        "pooler-is-told-of-each-time",
        TURNAROUND,
        "            self._told_of_leak = True\n",
        "",
        "tests/pool/test_pgbouncer.py::test_smart_reset",
    ),
    Mutant(
        "told-no-pooler-but-looks",
        "fastpool/drivers/pg8000.py",
        "if conn._pooled is None and not _is_process_id(",
        "if not _is_process_id(",
        "tests/integration/test_pgbouncer.py::test_finding_out",
    ),
    Mutant(
        "any-number-is-a-process-id",
        "fastpool/drivers/pg8000.py",
        "return number is None or 0 < number <= _MAX_PID",
        "return True",
        "tests/integration/test_pgbouncer.py::test_the_question_finds_a_key_that_looks_like_a_process_id",
    ),
    Mutant(
        "nobody-asks-for-the-process-id",
        "fastpool/drivers/pg8000.py",
        "conn._pooled = _key_id(conn) not in (None, pid)",
        "conn._pooled = False",
        "tests/integration/test_pgbouncer.py::test_the_question_finds_a_key_that_looks_like_a_process_id",
    ),
    Mutant(
        "found-pooler-is-not-told-on",
        OPENER,
        'params["pgbouncer"] = self.pooled or config.pgbouncer',
        'params["pgbouncer"] = config.pgbouncer',
        "tests/pool/test_pgbouncer.py::test_found_once_and_passed_on",
    ),
    Mutant(
        "listening-to-nobody",
        "fastpool/_listen.py",
        "            if not opener.pooled:\n",
        "            if True:\n",
        "tests/pool/test_pgbouncer.py::test_no_listening",
    ),
    Mutant(
        "prepared-where-it-will-not-be",
        WIRE,
        """\
        if self._pooled:
            raise""",
        """\
        if False:
            raise""",
        "tests/integration/test_pgbouncer.py::test_what_is_forbidden",
    ),
    Mutant(
        "busy-pooler-is-for-good",
        "fastpool/drivers/pg8000.py",
        'return not _said(error).get("M", "").startswith(_POOLER_BUSY)',
        "return True",
        "tests/drivers/test_connect.py::test_pgbouncer_says_08p01_whatever_it_refuses",
    ),
    Mutant(
        "refused-parameter-is-let-through",
        CONFIG,
        """\
        if self.pgbouncer:
            _fit_pgbouncer(self)
""",
        "",
        "tests/test_config.py::test_what_cannot_be_had_behind_pgbouncer",
    ),
]

HIDDEN = [
    Mutant(
        "frames-of-a-login-are-kept",
        "fastpool/drivers/pg8000.py",
        "            bare(error)  # frames of pg8000",
        "            error  # frames of pg8000",
        "tests/integration/test_secrets.py::test_password_that_is_no_text",
    ),
    Mutant(
        "only-the-last-error-is-bared",
        "fastpool/_secrets.py",
        "            links += link.__cause__, link.__context__\n",
        "",
        "tests/integration/test_secrets.py::test_password_that_is_no_text",
    ),
    Mutant(
        "parameters-show-in-locals",
        "fastpool/conninfo/__init__.py",
        "params = Params(self._params)",
        "params = dict(self._params)",
        "tests/integration/test_secrets.py::test_refused",
    ),
    Mutant(
        "connection-string-shows-in-locals",
        POOL,
        """\
    ) -> None: ...
    @hides_arguments
""",
        """\
    ) -> None: ...
""",
        "tests/integration/test_secrets.py::test_wrong_settings",
    ),
    Mutant(
        "environment-shows-in-locals",
        "fastpool/conninfo/_db_env.py",
        """\
    @classmethod
    @hides_arguments
""",
        """\
    @classmethod
""",
        "tests/integration/test_secrets.py::test_wrong_variables",
    ),
    Mutant(
        "hidden-context-is-kept",
        "fastpool/_secrets.py",
        "                link.__context__ = None\n",
        "                pass\n",
        "tests/integration/test_secrets.py::test_wrong_variables",
    ),
    Mutant(
        "key-password-shows-in-locals",
        "fastpool/drivers/_tls.py",
        'password = Secret(params.get("sslpassword") or "")',
        'password = params.get("sslpassword") or ""',
        "tests/integration/test_secrets.py::test_password_of_a_key",
    ),
    Mutant(
        "bytes-of-a-password-show",
        "fastpool/drivers/pg8000.py",
        "return SecretBytes((value.decode()",
        "return bytes((value.decode()",
        "tests/integration/test_secrets.py::test_password_that_is_no_text",
    ),
    Mutant(
        "root-certificate-counts-for-verify-only",
        "fastpool/drivers/_tls.py",
        "elif root is not None and os.path.exists(root):",
        'elif root is not None and os.path.exists(root) and mode.startswith("verify-"):',
        "tests/drivers/test_sslmode.py::test_sslmode",
    ),
    Mutant(
        "prefer-does-not-try-again",
        "fastpool/drivers/_tls.py",
        '"prefer": (True, False),',
        '"prefer": (True,),',
        "tests/drivers/test_sslmode.py::test_sslmode",
    ),
]

EXPLAINING = [
    Mutant(
        "deadlock-of-what-another-uses",
        CORE,
        "                    if state.user != entry.who >> 1:\n",
        "                    if state.user == 0:\n",
        "tests/core/test_deadlock.py::test_used_last_by_another_thread",
    ),
    Mutant(
        "deadlock-remembers-earlier-leases",
        CORE,
        "                if state.used == state.serial:\n",
        "                if state.used != 0:\n",
        "tests/core/test_deadlock.py::test_the_last_users_use_is_forgotten",
    ),
    Mutant(
        "deadlock-told-to-all",
        CORE,
        "turns.get(entry.who >> 1, math.inf) > waiter.turn:",
        "entry.who >> 1 not in turns:",
        "tests/core/test_deadlock.py::test_a_thread_with_several",
    ),
    Mutant(
        "deadlock-told-to-the-last-in-line",
        CORE,
        "            waiter.turn = self._joined\n",
        "            waiter.turn = 1 if again else self._joined + 1\n",
        "tests/core/test_deadlock.py::test_the_last_to_come_may_stand_further_up",
    ),
    Mutant(
        "deadlock-while-something-comes",
        CORE,
        "self.leased >= self.max_size and self.size == self.leased and waiter",
        "waiter",
        "tests/core/test_deadlock.py::test_something_still_moves",
    ),
    Mutant(
        "deadlock-of-a-dispatcher",
        CORE,
        "return DOUBTFUL if len(threads) > 1 else UNTANGLED",
        "return DOUBTFUL",
        "tests/core/test_deadlock.py::test_not_used_yet",
    ),
    Mutant(
        "deadlock-without-a-doubt",
        CORE,
        """\
                    doubt = True
""",
        """\
                    doubt = False
""",
        "tests/core/test_deadlock.py::test_not_used_yet",
    ),
    Mutant(
        "deadlock-though-somebody-moved",
        CORE,
        "if error is not None and self.deadlocked(waiter) != UNTANGLED:",
        "if error is not None:",
        "tests/core/test_deadlock.py::test_overtaken_by_a_release",
    ),
    Mutant(
        "deadlock-by-a-hooks-use",
        CORE,
        "            entry.state.used = 0  # what a hook did was no use of the caller's\n",
        "",
        "tests/core/test_deadlock.py::test_a_hooks_use_is_none",
    ),
    Mutant(
        "threads-by-their-identifiers",
        "fastpool/_runtime.py",
        'threadno = functools.partial(getattr, _Number(), "own")',
        "threadno = ident",
        "tests/core/test_deadlock.py::test_another_thread_of_that_name",
    ),
    Mutant(
        "handed-on-under-the-old-name",
        CORE,
        """\
                entry.who = waiter.who
""",
        "",
        "tests/core/test_lockstep.py",
    ),
    Mutant(
        "deadlock-among-greenlets",
        HOUSE,
        "if mode is None or not threads_are_told_apart():",
        "if mode is None:",
        "tests/pool/test_explain.py::test_greenlets_for_threads",
    ),
    Mutant(
        "deadlock-logged-each-time",
        HOUSE,
        "            if self._deadlocked_at != core.acquires:\n",
        "            if core.acquires:\n",
        "tests/pool/test_explain.py::test_deadlock_log",
    ),
    Mutant(
        "exhaustion-logged-each-time",
        HOUSE,
        "        self._exhausted_at = now\n",
        "",
        "tests/pool/test_explain.py::test_exhaustion_is_logged_now_and_then",
    ),
    Mutant(
        "down-while-all-are-there",
        DIAGNOSIS,
        "if facts.error_is_news and facts.established < facts.max_size:",
        "if facts.error_is_news:",
        "tests/test_diagnosis.py::test_verdict",
    ),
    Mutant(
        "frames-are-looked-at-while-collecting",
        "fastpool/stats.py",
        "        gc.disable()\n",
        "",
        "tests/pool/test_explain.py::test_nothing_is_collected_while_frames_are_looked_at",
    ),
    Mutant(
        "garbage-is-a-holder",
        HOUSE,
        "        gc.collect()\n",
        "",
        "tests/pool/test_explain.py::test_a_lease_dropped_in_a_cycle_is_no_holder",
    ),
    Mutant(
        "long-work-is-a-leak",
        DIAGNOSIS,
        'if h.state != "active" and (not h.alive or h.age > limit)',
        "if not h.alive or h.age > limit",
        "tests/test_diagnosis.py::test_verdict",
    ),
    Mutant(
        "any-call-is-slow",
        DIAGNOSIS,
        "0 < facts.waited <= 2 * h.running",
        "0 < facts.waited",
        "tests/integration/test_explain.py::test_too_many_users",
    ),
    Mutant(
        "ended-threads-live",
        CORE,
        "return not lives(self.who >> 1)",
        "return False",
        "tests/pool/test_explain.py::test_leaked_by_a_thread_that_ended",
    ),
]

SOAK = [
    Mutant(
        "reset-before-tls-costs-a-descriptor",
        "fastpool/drivers/_socket.py",
        """\
                self.close()
                raise ConnectionResetError(""",
        """\
                raise ConnectionResetError(""",
        "tests/drivers/test_connect.py::test_reset_before_the_handshake_leaves_nothing_open",
    ),
    Mutant(
        "ledger-forgets-what-failed",
        "tests/soak/ledger.py",
        "undead=[n for n in numbers if states[n] == FAILED and n in present],",
        "undead=[n for n in numbers if states[n] == FAILED and n not in present],",
        "tests/soak/test_soak.py::test_ledger_tells_what_is_wrong",
    ),
    Mutant(
        "ledger-takes-unknown-for-done",
        "tests/soak/ledger.py",
        """\
        elif self.sealed and may_have_run(exc):
            return
""",
        """\
        elif self.sealed and may_have_run(exc):
            state = DONE
""",
        "tests/soak/test_soak.py::test_ledger_accepts_what_was_told",
    ),
]

OPERATIONS = [
    Mutant(
        "busy-is-unhealthy",
        HEALTH,
        "return _CUT_OFF if pool._house.cut_off() else None",
        "return describe(error)",
        OPS_TESTS + "test_health.py::test_readiness_of_a_saturated_pool",
    ),
    Mutant(
        "dead-is-only-busy",
        HEALTH,
        "return _CUT_OFF if pool._house.cut_off() else None",
        "return None",
        OPS_TESTS + "test_health.py::test_saturated_but_cut_off",
    ),
    Mutant(
        "check-queues-for-its-whole-timeout",
        HEALTH,
        "patience = timeout * _PATIENCE",
        "patience = timeout",
        OPS_TESTS + "test_health.py::test_saturated_is_degraded",
    ),
    Mutant(
        "slow-dial-is-cut-short",
        HEALTH,
        "patience = ends - time.monotonic()\n            if patience <= 0:",
        "patience = ends - time.monotonic()\n            if True:",
        OPS_TESTS + "test_health.py::test_a_slow_dial_gets_the_whole_timeout",
    ),
    Mutant(
        "each-asker-checks",
        HEALTH,
        "shared = self._running if self._pid == os.getpid() else None",
        "shared = None",
        OPS_TESTS + "test_health.py::test_many_askers_take_one_connection",
    ),
    Mutant(
        "ready-from-the-start",
        HEALTH,
        "if not self._ready.is_set():",
        "if False:",
        OPS_TESTS + "test_health.py::test_readiness_before_it_is_set",
    ),
    Mutant(
        "degraded-is-503",
        HEALTH,
        """return 503 if self.status == "unhealthy" else 200""",
        """return 200 if self.status == "healthy" else 503""",
        OPS_TESTS + "test_health.py::test_saturated_is_degraded",
    ),
    Mutant(
        "page-for-everybody",
        SERVER,
        "return _Everything(named(pools)) if loopback else Probes(pools)",
        "return _Everything(named(pools))",
        OPS_TESTS + "test_server.py::test_a_pool_for_everybody",
    ),
    Mutant(
        "each-byte-has-the-read-timeout",
        SERVER,
        "left = self._until - time.monotonic()",
        "left = 0.3",
        OPS_TESTS + "test_server.py::test_a_slow_client_is_dropped",
    ),
    Mutant(
        "slow-clients-shut-out-a-probe",
        SERVER,
        """oldest = self._first("reading") or self._first("sending")""",
        "oldest = None",
        OPS_TESTS + "test_server.py::test_slow_clients_make_room",
    ),
    Mutant(
        "close-cuts-off-at-once",
        SERVER,
        "self._changed.wait_for(lambda: not self._busy(), timeout)",
        "pass",
        OPS_TESTS + "test_server.py::test_close_lets_requests_end",
    ),
    Mutant(
        "checks-take-every-thread",
        HTTP,
        "if not self._checking.acquire(blocking=False):",
        "if not self._checking.acquire():",
        OPS_TESTS + "test_http.py::test_too_many_checks",
    ),
    Mutant(
        "check-blocks-the-event-loop",
        HTTP,
        "response = await self._in_thread(call)",
        "response = call()",
        OPS_TESTS + "test_http.py::test_asgi_does_not_block_the_loop",
    ),
    Mutant(
        "redirect-to-another-server",
        HTTP,
        """path = quote(root.strip(b"/"))""",
        """path = root.decode("latin-1")[1:]""",
        OPS_TESTS + "test_http.py::test_a_redirect_stays_here",
    ),
    Mutant(
        "sampling-keeps-the-pools",
        HISTORY,
        "me = weakref.ref(self)",
        "me = lambda: self",
        OPS_TESTS + "test_http.py::test_sampling_runs_by_itself",
    ),
    Mutant(
        "bucket-one-off",
        METRICS,
        "totals[first:]",
        "totals[first - 1 :]",
        OPS_TESTS + "test_metrics.py::test_buckets_end_where_they_say",
    ),
    Mutant(
        "recorded-again-each-time",
        METRICS,
        "self._recorded[name, kind] = counts",
        "pass",
        OPS_TESTS + "test_metrics.py::test_opentelemetry",
    ),
    Mutant(
        "use-is-not-timed",
        CORE,
        "                self.use_time += seconds\n",
        "",
        OPS_TESTS + "test_metrics.py::test_uses_are_timed",
    ),
    Mutant(
        "figures-outlive-the-pool",
        "fastpool/ops/logs.py",
        "return pool is None or is_closed(pool)",
        "return pool is None",
        OPS_TESTS + "test_logs.py::test_ends_with_the_pool",
    ),
]

MUTANTS = [
    *WAITING,
    *CHECKOUT,
    *RETURN,
    *SLOTS,
    *DIALLING,
    *SETTINGS,
    *DRIVER,
    *DEADLINES,
    *TIME_LIMITS,
    *MATRIX,
    *INTERRUPTS,
    *FAILOVER,
    *FORK,
    *POOLER,
    *HIDDEN,
    *EXPLAINING,
    *SOAK,
    *OPERATIONS,
]
