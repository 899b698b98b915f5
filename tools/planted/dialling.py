"""Dials, hosts and failover."""

from __future__ import annotations

from .mutant import CORE, HOUSE, OPENER, POOL, TURNAROUND, WIRE, Mutant

HOSTS = "fastpool/_hosts.py"
LIVENESS = "fastpool/_liveness.py"

DIALLING = [
    Mutant(
        "call-swallows-an-interrupt",
        OPENER,
        "            any(map(kind.release, filter(kind.locked, (lock,))))\n",
        """\
            try:
                lock.release()
            except RuntimeError:
                pass
""",
        "tests/pool/test_calls.py::test_an_interrupt_of_any_kind",
    ),
    Mutant(
        "woken-dialler-keeps-calls-to-itself",
        OPENER,
        "        if self._made:\n            self._rouse()\n",
        "",
        "tests/pool/test_calls.py::test_who_is_woken_wakes_the_next",
    ),
    Mutant(
        "hook-on-a-dial-after-close",
        OPENER,
        """\
            if not self._stopped:
                self._turnaround.prepare(conn, entry.state)
""",
        "            self._turnaround.prepare(conn, entry.state)\n",
        "tests/pool/test_life.py::test_a_dial_that_ends_after_close",
    ),
    Mutant(
        "dropped-unopened-pool-opens",
        POOL,
        "if phase != 2:  # one that was not opened too",
        "if phase == 1:  # one that was not opened too",
        "tests/pool/test_life.py::test_a_pool_that_was_never_open_cannot_be_any_more",
    ),
    Mutant(
        "two-reconfigure-at-once",
        HOUSE,
        "        with self._opening:  # whoever changes others at this moment\n",
        "        if True:\n",
        "tests/pool/test_control.py::test_reconfigure_by_two_threads",
    ),
    Mutant(
        "reconfigured-half",
        HOUSE,
        "            self._put_in_force(before)\n",
        "",
        "tests/pool/test_control.py::test_reconfigure_interrupted",
    ),
    Mutant(
        "dial-outlasts-who-listens",
        OPENER,
        "        limit = time.monotonic() + patience\n",
        "        limit = math.inf\n",
        "tests/integration/test_listen.py::test_a_dial_does_not_outlast_who_waits",
    ),
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
        "        self._house.reconfigure(settings)\n",
        """\
        for name, value in settings.items():
            self._house.reconfigure({name: value})
""",
        "tests/pool/test_control.py::test_reconfigure_all_or_nothing",
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
