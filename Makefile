# Every target makes .venv when it is missing or its lists have changed. All tool settings are in pyproject.toml.
#   make demo test check servers soak bench bench-quick bench-all clean
#   make test SLOW_SHARE=10 PYTEST_ARGS="-k names"      make check PYTHON=python3.13      make soak SOAK_S=60

PYTHON ?= $(shell for p in python3 python3.15 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
# Percent of the tests marked slow that `test` and `check` run, or `all`.
SLOW_SHARE ?= 0
PYTEST_ARGS ?=

BIN := .venv/bin
TYPED := aimport tests $(wildcard bench)
# Tests wait for servers more than they compute: one worker more than there are processors.
WORKERS ?= $(shell "$(PYTHON)" -c 'import os; print(os.cpu_count() + 1)')
COVERED_TESTS = $(BIN)/coverage erase && \
	{ $(BIN)/coverage run -m pytest -q -n $(WORKERS) --dist worksteal --slow-share=$(1) $(PYTEST_ARGS); status=$$?; \
	$(BIN)/coverage combine -q && $(BIN)/coverage report; exit $$status; }

.PHONY: help demo test check servers soak bench bench-quick bench-all clean
help:
	@sed -n 's/^# \{0,1\}//; 1,3p' Makefile

.venv/.complete: tests/requirements.txt tests/bootstrap-requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) tests/bootstrap.py
	@touch $@

demo: .venv/.complete
	@$(BIN)/aimport demo

servers: .venv/.complete
	@$(BIN)/python -m tests.servers

test: servers
	@$(call COVERED_TESTS,$(SLOW_SHARE))

check: servers
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check . || { $(BIN)/ruff format --check .; exit 1; }
	@$(BIN)/mypy --strict --no-error-summary $(TYPED)
	@$(call COVERED_TESTS,$(SLOW_SHARE))

# Kills clients, servers and connections for so many seconds.
SOAK_S ?= 600
soak: servers
	@AIMPORT_SOAK_S=$(SOAK_S) $(BIN)/pytest -q -s tests/faults/test_soak.py $(PYTEST_ARGS)

# About ten minutes, and about one: the scenarios that matter, each row beside its peer or floor.
bench: servers
	@$(BIN)/python -m bench --scenario core
	@$(BIN)/python -m bench.growth --rounds 1
	@$(BIN)/python -m bench.journal_cost --rounds 3 --messages 300

bench-quick: servers
	@$(BIN)/python -m bench --quick --scenario core
	@$(BIN)/python -m bench.growth --quick
	@$(BIN)/python -m bench.journal_cost --rounds 1 --messages 250

# Everything: more than an hour, or a few minutes with BENCH_ARGS=--quick.
bench-all: servers
	@$(BIN)/python -m bench --scenario all $(BENCH_ARGS)
	@$(BIN)/python -m bench.growth $(or $(BENCH_ARGS),--full)
	@$(BIN)/python -m bench.journal_cost
	@for each in selecting dbox workers limits users_scale; do $(BIN)/python -m bench.$$each $(BENCH_ARGS) || exit 1; done
	@$(BIN)/python -m bench.stages_cost

clean:
	@rm -rf .venv .venv-bootstrap .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist htmlcov
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
