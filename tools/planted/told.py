"""What is told: errors, health, metrics; and the soak, which has to tell."""

from __future__ import annotations

from .mutant import CORE, HOUSE, POOL, Mutant

DIAGNOSIS = "fastpool/_diagnosis.py"
OPS_TESTS = "tests/ops/"
HEALTH = "fastpool/ops/health.py"
HTTP = "fastpool/ops/http.py"
SERVER = "fastpool/ops/_server.py"
HISTORY = "fastpool/ops/_history.py"
METRICS = "fastpool/ops/metrics.py"
LIFECYCLE = "fastpool/ops/lifecycle.py"
LOAD = "fastpool/ops/load.py"
POOLS = "fastpool/ops/_pools.py"
SIZE = "fastpool/ops/size.py"

EXPLAINING = [
    Mutant(
        "end-of-an-idle-session-is-not-told",
        "fastpool/_liveness.py",
        'if word == "57P05":',
        'if word == "57P06":',
        "tests/pool/test_liveness.py::test_idle_sessions_that_the_server_ends",
    ),
    Mutant(
        "hook-closes-in-silence",
        "fastpool/_turnaround.py",
        'self.log.info("not_kept", "after_release has a connection closed")',
        "pass",
        "tests/pool/test_hooks.py::test_after_release_false_closes",
    ),
    Mutant(
        "filter-ends-the-maintenance-thread",
        "fastpool/_logs.py",
        "except Exception:  # of a filter",
        "except ZeroDivisionError:  # of a filter",
        "tests/pool/test_odd_moments.py::test_a_log_filter_that_raises",
    ),
    Mutant(
        "done-work-called-rolled-back",
        HOUSE,
        "if not entry.state.flags & TRANSACTION:",
        "if not entry.state.flags:",
        "tests/pool/test_odd_moments.py::test_close_in_a_block_that_has_nothing_open",
    ),
    Mutant(
        "transaction-block-entered-twice",
        POOL,
        "if next(self._entered):",
        "if next(self._entered) < 0:",
        "tests/pool/test_transactions.py::test_a_transaction_block_lives_once",
    ),
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
        "return DOUBTFUL if len(threads) > 1 or not bare else UNTANGLED",
        "return DOUBTFUL",
        "tests/core/test_deadlock.py::test_not_used_yet",
    ),
    Mutant(
        "deadlock-of-a-block-that-another-ends",
        CORE,
        """\
                    doubt = True
                    bare = bare or not entry.who & 1
""",
        """\
                    doubt = bare = bare or not entry.who & 1
""",
        "tests/core/test_deadlock.py::test_a_block_not_used_yet",
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
        "        gc.disable()\n        return _users_line(thread)\n",
        "        return _users_line(thread)\n",
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
        "_Everything(named(app)) if _is_loopback(host) else Probes(app)",
        "_Everything(named(app))",
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
        "if not checking.acquire(blocking=False):",
        "if not checking.acquire():",
        OPS_TESTS + "test_http.py::test_too_many_checks",
    ),
    Mutant(
        "health-and-readiness-share-their-room",
        HTTP,
        "checking = self._checking[path]",
        """checking = self._checking["/health"]""",
        OPS_TESTS + "test_http.py::test_a_crowd_at_health_leaves_readiness",
    ),
    Mutant(
        "name-that-begins-like-loopback",
        SERVER,
        """return host == "localhost\"""",
        """return host.startswith(("localhost", "127."))""",
        OPS_TESTS + "test_server.py::test_what_only_this_machine_reaches",
    ),
    Mutant(
        "old-failure-is-news",
        POOLS,
        "core.now() - opener.last_error_at < _STALE or core.connecting > 0",
        "True",
        OPS_TESTS + "test_metrics.py::test_an_old_failure_is_no_news",
    ),
    Mutant(
        "sessions-of-others-do-not-count",
        SIZE,
        "coalesce(backend_type, 'client backend')",
        "backend_type",
        "tests/integration/test_sizing_commands.py::test_size_for_an_ordinary_role",
    ),
    Mutant(
        "load-recommends-what-fails",
        LOAD,
        "if not any(step.per_second for step in steps):",
        "if not steps:",
        "tests/integration/test_sizing_commands.py::test_load_of_failures",
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
    Mutant(
        "each-step-has-the-whole-grace",
        LIFECYCLE,
        "max(0.0, self._ends - time.monotonic())",
        "self._ends - self._began",
        OPS_TESTS + "test_lifecycle.py::test_one_deadline",
    ),
    Mutant(
        "pool-closes-under-its-requests",
        LIFECYCLE,
        """\
            steps.callback(self._close_pools)
            steps.callback(self._close_server)
""",
        """\
            steps.callback(self._close_server)
            steps.callback(self._close_pools)
""",
        OPS_TESTS + "test_lifecycle.py::test_requests_end_before_the_pool",
    ),
    Mutant(
        "ready-until-the-end",
        LIFECYCLE,
        "            self._set_ready(False)\n",
        "",
        OPS_TESTS + "test_lifecycle.py::test_drain",
    ),
    Mutant(
        "nobody-hears-the-second-signal",
        LIFECYCLE,
        "                end.hurry()\n",
        "",
        OPS_TESTS + "test_lifecycle.py::test_a_second_signal",
    ),
    Mutant(
        "a-servers-end-is-no-error",
        LIFECYCLE,
        "            return None, error\n",
        "            return None, None\n",
        OPS_TESTS + "test_lifecycle.py::test_a_server_that_breaks_down",
    ),
    Mutant(
        "a-childs-signal-is-its-parents",
        LIFECYCLE,
        "if os.getpid() == self._pid:",
        "if True:",
        OPS_TESTS + "test_lifecycle.py::test_a_childs_signal",
    ),
    Mutant(
        "requests-cut-off-are-waited-for",
        SERVER,
        "            self._doing.clear()  # nobody waits for them any more\n",
        "",
        OPS_TESTS + "test_lifecycle.py::test_a_second_signal",
    ),
]
