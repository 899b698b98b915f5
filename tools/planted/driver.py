"""The driver: its protocol, deadlines, time limits, PgBouncer."""

from __future__ import annotations

from .mutant import CONFIG, CORE, OPENER, POOL, TURNAROUND, WIRE, Mutant

DEADLINE = "fastpool/_deadline.py"
RETRY = "fastpool/retry.py"
POOL_TESTS = "tests/pool/test_deadlines.py::"
SERVER_TESTS = "tests/integration/test_deadlines.py::"

DRIVER = [
    Mutant(
        "columns-of-another",
        WIRE,
        "return super().columns if self._asked == self._state.serial else None",
        "return super().columns",
        "tests/drivers/test_wire.py::test_what_another_lease_asked_is_not_told",
    ),
    Mutant(
        "work-after-a-rollback-past-the-deadline",
        WIRE,
        r'(rollback|abort)\b[^;]*;?\s*\Z"',
        r'(rollback|abort)\b"',
        "tests/integration/test_deadlines.py::test_a_commented_commit_is_one",
    ),
    Mutant(
        "unlisten-for-all",
        WIRE,
        r'b"UNLISTEN\0"',
        r'b"LISTEN\0"',
        "tests/integration/test_hooks.py::test_what_after_connect_made_is_there_for_all",
    ),
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
        "deadline-outlives-its-block",
        DEADLINE,
        """\
    while limit is not None and limit.block() is None:
        limit = limit.outer
""",
        "",
        "tests/pool/test_deadlines.py::test_an_interrupt_leaves_no_deadline_behind",
    ),
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
        "min(current(), time.monotonic() + self._seconds)",
        "time.monotonic() + self._seconds",
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
        "if state.flags or state.stray or state.calls or (self.settles and returned):",
        "if state.flags or state.calls or (self.settles and returned):",
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
