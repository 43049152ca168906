# Everything a user or a maintainer runs. Each target does its own set-up; python3 with venv is needed, and for
# the SDK for TypeScript Node 20 with npm. Where that is missing `make test` leaves it out, and says so.
.PHONY: run test test-in-process test-processes sdk-python sdk-typescript no-node soak lint fmt rego deploy-check bench \
	bench-smoke clean

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# Without make's own variables: what the tests start may be a make, too.
PYTEST := env -u MAKEFLAGS -u MAKELEVEL $(BIN)/pytest --dist worksteal -q
# Tests of tests/integration that run what they test in their own process.
IN_PROCESS := $(patsubst %,tests/integration/test_%.py,calling doctor doctor_backends opa supervisor)
# Tests of tests/http that go roads which others cover: they are not traced, for that takes twice as long.
UNTRACED := $(patsubst %,tests/http/test_%.py,address_limit approved_is_signed azure_round_trip backend_faults \
	cloud_round_trip composites data_key_cache dpop federation gcp_backend grants kill_switch \
	no_secret_in_postgresql no_secret_leaks only_road planted_code rewrap_between_clouds round_trip)
# Where memory has room, tests in one process keep their files there: a third of the time they would wait for a disk.
# What is killed, or whose disk fails, is a process of tests/integration, and those write to a disk.
IN_MEMORY := $(shell [ -w /dev/shm ] && [ "$$(df --output=avail /dev/shm | tail -n 1)" -gt 4000000 ] && echo TMPDIR=/dev/shm)
# The tests of servers run both SDKs, too.
TYPESCRIPT := $(shell node -e 'process.exitCode = +(parseInt(process.versions.node) < 20)' 2>/dev/null && echo sdk-typescript || echo no-node)

run: $(READY)
	@exec $(BIN)/kkp dev

# The clients' tests fill the cores that the first part leaves idle. Those that start processes keep to themselves:
# they hold replicas to their seconds.
test: $(READY)
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target test-in-process sdk-python $(TYPESCRIPT)
	@$(MAKE) --no-print-directory test-processes

# Coverage counts what runs in the tests' own process. The others start processes, and would be slower for nothing.
test-in-process: $(READY)
	$(IN_MEMORY) $(PYTEST) -n logical --cov --cov-report=term:skip-covered $(addprefix --ignore=,$(UNTRACED)) \
		tests/unit tests/properties tests/contract tests/http $(IN_PROCESS)
	$(IN_MEMORY) $(PYTEST) -n logical $(UNTRACED)

test-processes: $(READY)
	$(PYTEST) -n auto $(addprefix --ignore=,$(IN_PROCESS)) tests/integration

# The Python client alone, in an environment of its own, which has nothing of the server's.
sdk-python:
	$(MAKE) -C sdk/python lint test

# Every promise at its bar (docs/promises.md): hours. PROMISES="13 19" holds those alone; REPORT= keeps a table.
soak: $(READY)
	@$(BIN)/python -m tests.soak $(if $(REPORT),--report "$(REPORT)") $(PROMISES)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

fmt: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The policy bundle against a real OPA and Regal, which are built where Go is and taken from PATH elsewhere.
rego:
	tests/tools/rego.sh

# What deploy/ has for containers, with the code of BuildKit, Compose and kustomize, and Kubernetes' own schemas.
deploy-check: $(READY)
	tests/tools/deploy.sh

# The client for TypeScript alone. It stands before the tests that start processes, which run it too.
sdk-typescript:
	$(MAKE) -C sdk/typescript lint test

no-node:
	@echo "Node 20 is missing: the SDK for TypeScript is not tested" >&2

bench: $(READY)
	$(BIN)/python benchmarks/run.py
	$(MAKE) -C sdk/typescript bench
	$(MAKE) -C sdk/python bench

# The same suite, tiny: shows that it works, measures nothing.
bench-smoke: $(READY)
	$(BIN)/python benchmarks/run.py --smoke
	$(BIN)/python benchmarks/isolation.py --smoke
	$(BIN)/python benchmarks/guessing.py --smoke
	$(BIN)/python benchmarks/workers.py --smoke

clean:
	$(MAKE) -C sdk/typescript clean
	$(MAKE) -C sdk/python clean
	rm -rf .venv .tools dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .soak .coverage* .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One environment, from one lock: every package is pinned by hash. The lock is whole, and pip resolves nothing:
# left to resolve `coverage[toml]`, it would ask for the newest release and refuse that for want of a hash.
$(READY): requirements.lock pyproject.toml sdk/python/pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "python3 is missing; on Debian: apt install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv is missing; on Debian: apt install python3-venv" >&2; exit 1; }
	@echo "installing into .venv, about a minute"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . --editable sdk/python
	@touch $@
