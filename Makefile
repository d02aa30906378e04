# One command per intent; `.ci/run` uses the same ones.

PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(if $(shell $(p) -c 'import sys, venv, ensurepip; sys.exit(not ((3, 11) <= sys.version_info < (3, 14)))' 2>/dev/null && echo yes),$(p))))
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
KAFKA_LIBS := .cache/kafka/libs
WORKERS ?= 2
JOB ?= examples/mnist/federatedjob.yaml

.DEFAULT_GOAL := help
.PHONY: help setup run test check format bench kafka soak images compose-test docs clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Make .venv and install Fedlog with everything it can use

$(READY): pyproject.toml constraints.txt
	@if [ -z '$(PYTHON)' ]; then \
	  echo 'error: no Python from 3.11 to 3.13 with venv and pip found. Install one (Debian: apt-get install python3 python3-venv), or name one: make PYTHON=/path/to/python3.12' >&2; exit 1; fi
	@[ -x $(BIN)/python ] || { echo 'Making $(VENV) with $(PYTHON)'; $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[tensorflow,local,datasets,dev]'
	@touch $@

run: $(READY) ## Learn MNIST with 5 Keras clients on this machine (JOB=… for another job)
	$(BIN)/fedlog run $(JOB)

test: $(READY) ## Unit and integration tests (WORKERS=… processes)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m 'not soak and not containers'

check: $(READY) ## Style, types, architecture, generated files, links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/unit/docs tests/unit/job/test_generated.py tests/unit/wire/test_documented_bytes.py

format: $(READY) ## Let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## Measure; writes benchmarks/results/latest.json
	$(BIN)/python -m benchmarks

kafka: $(KAFKA_LIBS)/.ready ## Fetch Apache Kafka's jars by Maven, for the tests that want the real one

$(KAFKA_LIBS)/.ready: tests/kafka/pom.xml
	@command -v mvn >/dev/null || { echo 'error: Maven is missing (Debian: apt-get install maven default-jre-headless)' >&2; exit 1; }
	mvn --quiet --batch-mode -f tests/kafka/pom.xml dependency:copy-dependencies -DoutputDirectory=$(CURDIR)/$(KAFKA_LIBS)
	@touch $@

soak: $(READY) ## The large forms of the tests
	$(BIN)/python -m pytest -m soak --timeout 3600

images: $(READY) $(KAFKA_LIBS)/.ready ## Container images without Docker (`docker compose build` is the other way)
	images/build

compose-test: images ## The services of compose.yaml in containers, without Docker
	$(BIN)/python -m pytest -m containers

docs: $(READY) ## Write the generated pages again
	$(BIN)/python -m fedlog.job.reference > docs/reference/job.md
	$(BIN)/fedlog schema > docs/reference/federatedjob.schema.json
	$(BIN)/python -m fedlog.cli.reference > docs/reference/cli.md
	$(BIN)/python -m fedlog.wire.reference docs/reference/protocol.md

clean: ## Remove what was built or measured here; .venv and runs/ stay
	@! mountpoint -q .cache/containers/storage/overlay || umount .cache/containers/storage/overlay
	rm -rf .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
