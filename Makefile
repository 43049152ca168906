# Everything a user or a maintainer runs. Each target does its own set-up; python3 with venv is needed,
# and Node 20 with npm for the SDK for TypeScript.
.PHONY: run test sdk-python soak lint fmt rego deploy-check bench bench-smoke sdk-typescript clean

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PYTEST := $(BIN)/pytest -n auto --dist worksteal -q
# Tests of tests/integration that run what they test in their own process.
IN_PROCESS := $(patsubst %,tests/integration/test_%.py,calling doctor doctor_backends opa supervisor)

run: $(READY)
	@exec $(BIN)/kkp dev

# Coverage counts what runs in the tests' own process. The others start processes, and would be slower for nothing.
test: $(READY) sdk-typescript
	$(PYTEST) --cov --cov-report=term:skip-covered tests/unit tests/properties tests/contract tests/http $(IN_PROCESS)
	$(PYTEST) $(addprefix --ignore=,$(IN_PROCESS)) tests/integration
	$(MAKE) sdk-python

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

# The client for TypeScript alone. It stands before the other tests, which run it too.
sdk-typescript:
	$(MAKE) -C sdk/typescript lint test

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
