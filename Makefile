# Everything a person does with this repository. `make` alone lists it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
# Most tests wait for processes and disks. A file's tests stay together, since they share what they started.
JOBS   ?= 3
PARALLEL := --numprocesses $(JOBS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test test-system test-long fuzz check bench telegraf kafka deb requirements venv clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# --- set-up: .venv, then pinned packages, then the repository itself; each again only when what it comes from changed ---

$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "$(PYTHON) is not installed: install Python 3.11 or newer, or name one: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Waybill needs Python 3.11 or newer and $(PYTHON) is older: name another one, as in make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) comes without venv: run (as root) apt-get install -y python3-venv" >&2; exit 2; }
	@echo "making $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# The stamp of a set of packages: .venv/.demo from requirements/demo.txt, .venv/.dev from requirements/dev.txt.
$(VENV)/.%: requirements/%.txt pyproject.toml $(VENV)/.made
	@echo "installing $<: $$(grep -c == $<) packages, a minute or more"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r $<
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.PRECIOUS: $(VENV)/.%

venv: $(VENV)/.dev ## .venv with everything for development

# --- what people run ---

ifeq ($(KAFKA),local)
demo: $(VENV)/.dev
	@$(BIN)/python deploy/kafka/kafka.py run --temporary -- $(BIN)/waybill demo --kafka '{bootstrap}' $(ARGS)
else
demo: $(VENV)/.demo ## a minute with an outage, a killed agent and a command; KAFKA=host:port or KAFKA=local for a real Kafka
	@$(BIN)/waybill demo $(if $(KAFKA),--kafka $(KAFKA)) $(ARGS)
endif

kafka: $(VENV)/.dev ## a real Kafka in the foreground, data in var/kafka; ARGS="--brokers 3 --scram app:secret"
	@$(BIN)/python deploy/kafka/kafka.py run var/kafka $(ARGS)

test: $(VENV)/.dev ## unit, contract, property, integration and fault tests, against a real Kafka; ARGS=... to pytest
	@$(PYTEST) $(PARALLEL) $(ARGS)

test-system: $(VENV)/.dev ## what needs root and system packages; installs those
	@tests/system/install
	@$(PYTEST) $(PARALLEL) -m 'system$(if $(WAYBILL_LONG),, and not long)' $(ARGS)

test-long: $(VENV)/.dev ## the full counts of what `make test` runs in a short seeded form
	@WAYBILL_LONG=1 $(PYTEST) -m 'not bench and not system' $(ARGS)
	@if [ "$$(id -u)" = 0 ]; then WAYBILL_LONG=1 $(MAKE) test-system; else \
	  echo "the full counts of the system tests (power cuts, full disks) need root: sudo make test-long"; fi

fuzz: $(VENV)/.dev ## a million mutated packets at the MQTT server; COUNT=..., SEED=... (else drawn)
	@WAYBILL_FUZZ=$(or $(COUNT),1000000) WAYBILL_SEED=$(or $(SEED),$$(date +%s)) $(PYTEST) -q -s tests/fuzz $(ARGS)

bench: $(VENV)/.dev ## rates and ratios, printed
	@$(PYTEST) -m bench -s $(ARGS)

# Of its plug-ins only those between MQTT and Kafka: all of them take ten times as long to build. Go checks the version's hash.
TELEGRAF_VERSION := 1.37.0
TELEGRAF := var/telegraf-$(TELEGRAF_VERSION)/telegraf
TELEGRAF_PARTS := custom,inputs.mqtt_consumer,parsers.value,serializers.template,outputs.kafka

$(TELEGRAF):
	@command -v go >/dev/null || { \
	  echo "Telegraf is built with Go, which is not installed: install Go 1.21 or newer and have it in PATH, then make telegraf" >&2; exit 2; }
	@echo "building Telegraf from its Go module, some minutes"
	@CGO_ENABLED=0 GOBIN="$(CURDIR)/$(@D)" go install -trimpath -tags $(TELEGRAF_PARTS) \
	  -ldflags "-X github.com/influxdata/telegraf/internal.Version=$(TELEGRAF_VERSION)" \
	  github.com/influxdata/telegraf/cmd/telegraf@v$(TELEGRAF_VERSION)

telegraf: $(TELEGRAF) ## Telegraf in var, to be judged beside Waybill (docs/fleet-peers.md); prints where
	@echo $(CURDIR)/$(TELEGRAF)

check: $(VENV)/.dev ## style, types, imports, requirement files
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(PYTEST) -q tests/unit/test_repository.py

deb: $(VENV)/.dev ## dist/waybill-edge_*.deb for a gateway; RELEASE=bookworm or trixie, ARCH=amd64 or arm64
	@$(BIN)/python deploy/deb/build.py --release $(or $(RELEASE),bookworm) --arch $(or $(ARCH),amd64)

requirements: $(VENV)/.dev ## pin anew what pyproject.toml asks for; UPGRADE=1 takes the newest of everything
	@requirements/compile $(if $(UPGRADE),--upgrade)

clean: ## remove what was made here: .venv, caches, var
	rm -rf $(VENV) var build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache tests/system/clients/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
