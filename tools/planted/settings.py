"""Settings, and what they have to hide."""

from __future__ import annotations

from .mutant import CONFIG, POOL, Mutant

SETTINGS = [
    Mutant(
        "variable-out-of-range-is-not-named",
        POOL,
        'raise ConfigError(f"{variable}: {error}", setting=variable) from None',
        "raise",
        "tests/pool/test_odd_moments.py::test_from_env_names_the_variable",
    ),
    Mutant(
        "view-forgets-its-limits",
        POOL,
        "timeout = self._limits[0]",
        "timeout = None",
        "tests/pool/test_life.py::test_a_view_of_a_view",
    ),
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
