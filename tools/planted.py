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
        "wanted = self.waiting - self.connecting",
        "wanted = self.waiting",
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
                if not hook(entry.conn):
                    return "before_acquire"
""",
        """\
                hook(entry.conn)
""",
        "tests/pool/test_hooks.py::test_before_acquire_false_takes_the_next",
    ),
    Mutant(
        "failed-ping-passes",
        TURNAROUND,
        """\
            log.info("pool %r: an idle connection is dead: %s", self.name, error)
            return False
""",
        """\
            log.info("pool %r: an idle connection is dead: %s", self.name, error)
            return True
""",
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
        "if state.flags != 0 or (self.settles and returned):",
        "if self.settles and returned:",
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
            self.driver.control(entry.conn, "ROLLBACK", _ROLLBACK)
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
        'if self.config.reset == "smart":',
        'if self.config.reset == "discard":',
        "tests/pool/test_limits.py::test_reset",
    ),
    Mutant(
        "discard-undoes-the-preparation",
        TURNAROUND,
        """\
        self.driver.discard(entry.conn)
        self.prepare(entry.conn, entry.state)
""",
        """\
        self.driver.discard(entry.conn)
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
            self.driver.control(entry.conn, "ROLLBACK")
            raise _aborted()
""",
        """\
            self.driver.control(entry.conn, "ROLLBACK")
""",
        "tests/pool/test_transactions.py::test_an_aborted_block_says_so",
    ),
    Mutant(
        "lost-commit-passes-for-undone",
        TURNAROUND,
        """\
                    outcome="unknown",
                ) from error
""",
        """\
                ) from error
""",
        "tests/pool/test_transactions.py::test_an_unanswered_commit",
    ),
    Mutant(
        "inner-rollback-undoes-everything",
        TURNAROUND,
        """\
            control(entry.conn, f"ROLLBACK TO SAVEPOINT {self._savepoint}")
            control(entry.conn, f"RELEASE SAVEPOINT {self._savepoint}")
""",
        """\
            control(entry.conn, "ROLLBACK")
""",
        "tests/pool/test_transactions.py::test_nested_transactions",
    ),
]

SLOTS = [
    Mutant(
        "closing-connection-frees-its-slot",
        CORE,
        """\
            if wanted > self.max_size - self.size:
                wanted = self.max_size - self.size
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
        '                    self._core.retire(entry, entry.holder, "dead")\n',
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
        "                self._hosts.failed(index)\n",
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
            self._send(message)
""",
        """\
            self._send(message)
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
        "if flags & (BUSY | DIRTY) and not isinstance(self._broken, DatabaseError):",
        "if flags & BUSY and not isinstance(self._broken, DatabaseError):",
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

DEADLINE = "fastpool/_deadline.py"
RETRY = "fastpool/retry.py"
POOL_TESTS = "tests/pool/test_deadlines.py::"
SERVER_TESTS = "tests/integration/test_deadlines.py::"

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
        "commit-after-the-deadline",
        TURNAROUND,
        """\
        if left <= 0:
            self.rollback(entry)
""",
        """\
        if left == -math.inf:
            self.rollback(entry)
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

OPS_TESTS = "tests/ops/"
HEALTH = "fastpool/ops/health.py"
HTTP = "fastpool/ops/http.py"
SERVER = "fastpool/ops/_server.py"
HISTORY = "fastpool/ops/_history.py"
METRICS = "fastpool/ops/metrics.py"

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
    *OPERATIONS,
]
