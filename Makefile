# What a contributor runs. It needs make, git and Python 3.10 or newer, nothing else;
# "PYTHON=python3.12 make test" chooses the interpreter.
PYTHON ?= python3
VENV = PYTHON="$(PYTHON)" tools/venv.sh
RUN = .venv/bin
# For tools that call others by name.
ON_PATH = PATH="$(CURDIR)/$(RUN):$$PATH"

.PHONY: help demo test lint soak docs bench bench-smoke bench-quick bench-full figures mutants
.PHONY: wheel clean
# The targets share .venv, so they run one after the other.
.NOTPARALLEL:

help:
	@echo "make demo     see the pool at work on a private PostgreSQL"
	@echo "make test     run the tests"
	@echo "make lint     check style, types and the generated file"
	@echo "make soak     mixed work on real servers while everything fails, for SOAK_SECONDS (60)"
	@echo "make docs     build the pages into build/docs; a warning is an error"
	@echo "make bench    run the benchmarks and write docs/benchmarks.md (9 minutes; also"
	@echo "              bench-quick: two, only printed; bench-full: the whole grid, hours)"
	@echo "make figures  measure every figure that has a target, and judge it"
	@echo "make mutants  plant faults in the source and see that a test notices each"
	@echo "make wheel    build the sdist, the compiled wheel and the pure wheel into dist/"
	@echo "make clean    remove everything that was made"

demo:
	@$(VENV) demo
	$(RUN)/fastpool demo

test:
	@$(VENV) test
	$(RUN)/python -m pytest

lint:
	@$(VENV) lint
	$(RUN)/ruff check
	$(RUN)/ruff format --check
	$(RUN)/mypy
	$(ON_PATH) cython-lint fastpool
	$(RUN)/python tools/unpyx.py --check

# SOAK_SECONDS=600 is the full proof; SOAK_SEED repeats a schedule of faults.
soak:
	@$(VENV) test
	PYTHONPATH=tests $(RUN)/python -m soak

docs:
	@$(VENV) docs
	$(RUN)/sphinx-build --fail-on-warning --keep-going --quiet docs build/docs
	@echo "build/docs/index.html"

bench bench-full:
	@$(VENV) bench
	$(RUN)/python -m bench run --effort $(if $(filter %-full,$@),full,slice) \
		--json docs/benchmarks.json
	$(RUN)/python -m bench page

bench-quick:
	@$(VENV) bench
	$(RUN)/python -m bench run --effort quick

# Only sees that everything runs, the page included, in less than a minute.
bench-smoke:
	@$(VENV) bench
	$(RUN)/python -m bench run --effort smoke --json build/bench/benchmarks.json
	$(RUN)/python -m bench page build/bench

figures:
	@$(VENV) bench
	$(RUN)/python -m bench figures

# A defect of the core is carried into the interpreted one, which ruff formats.
mutants:
	@$(VENV) test lint
	$(RUN)/python tools/mutants.py

# Both wheels are made from the sdist, so they prove that it is complete.
wheel:
	@$(VENV) wheel
	rm -rf dist build/dist
	FASTPOOL_NO_EXT=0 FASTPOOL_REQUIRE_EXT=1 $(RUN)/python -m build --outdir build/dist
	$(ON_PATH) auditwheel repair --wheel-dir dist build/dist/*.whl
	FASTPOOL_NO_EXT=1 FASTPOOL_REQUIRE_EXT=0 $(RUN)/python -m pip wheel --no-deps --no-cache-dir \
		--wheel-dir dist build/dist/*.tar.gz
	mv build/dist/*.tar.gz dist

clean:
	rm -rf .venv build dist *.egg-info .benchmarks .coverage* .hypothesis
	rm -rf .mypy_cache .pytest_cache .ruff_cache
	rm -f fastpool/*.so fastpool/_core.c fastpool/_core.html
	find . -name __pycache__ -prune -exec rm -rf {} +
