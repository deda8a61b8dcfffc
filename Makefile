# Two commands do all the set-up: `make demo` shows the product at work, `make test` passes the tests.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: help demo test fast check lab lab-binaries bench deep screenshots image lock clean

help:  ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"Sickbay needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}. Try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)  ## a GPU falls off the bus, and its node is healed before your eyes
	$(BIN)/sickbay demo

test: fast  ## all tests: the fast ones, the demo's, then the lab's (a real Kubernetes; they say so when they cannot run)
	usage=$$(mktemp -d) && export SICKBAY_LAB_RBAC_USAGE=$$usage && \
	    $(MAKE) --no-print-directory --jobs=2 --output-sync=target test-lab test-repair && \
	    $(BIN)/python -m tests.lab.rbac_usage $$usage && rm -r $$usage

# Two labs beside each other: both wait most of the time. What permissions are used is judged over both.
.PHONY: test-lab test-repair
test-lab: $(READY)
	$(BIN)/pytest tests/lab --ignore=tests/lab/repair -m "lab and not deep"

test-repair: $(READY)
	$(BIN)/pytest tests/lab/repair tests/demo tests/contract -m "(lab or demo) and not deep"

fast: $(READY)  ## the tests that need nothing but Python
	$(BIN)/pytest tests/unit tests/property tests/contract -m "not lab and not deep" -n auto

check: $(READY)  ## formatting, linters, types, import rules, alert rules (where promtool is installed)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	if command -v promtool >/dev/null; then promtool test rules alerts/tests/*.test.yaml; fi
	$(BIN)/hadolint Dockerfile

lab: $(READY)  ## a real Kubernetes on this machine, until Ctrl-C
	$(BIN)/python -m tests.lab --nodes 2

lab-binaries: $(READY)  ## build the lab's Kubernetes from its public Go modules (about 7 minutes)
	$(BIN)/python -m tests.lab.binaries build

bench: $(READY)  ## measure, and say how it compares with the target
	$(BIN)/python -m benchmarks.fence
	$(BIN)/python -m benchmarks.dispatch
	$(BIN)/python -m benchmarks.embedded

deep: $(READY)  ## the tests that take long
	$(BIN)/pytest tests -m deep --hypothesis-profile=deep

screenshots: $(READY)  ## pictures of the dashboards with the lab's data (npm, Chromium, Prometheus)
	$(BIN)/python -m tests.lab.screenshots

image:  ## build the container image (buildah, podman or docker; IMAGE= names it)
	deploy/build-image

COMPILE = uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate

lock:  ## pin the dependencies anew (needs uv)
	$(COMPILE) --group dev pyproject.toml -o requirements/dev.txt
	$(COMPILE) pyproject.toml -o requirements/runtime.txt
	$(COMPILE) --group build -o requirements/build.txt

clean:  ## remove what was built
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
