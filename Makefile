# Every target does its own set-up: system packages (Debian), a virtual environment in .venv, the
# project with its extensions compiled. What is there already is left alone.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
ARGS ?=
# Tests side by side. They wait more than they compute; with many more some would find the machine
# too busy to exceed a limit.
WORKERS ?= 3

VENV := .venv
BIN := $(VENV)/bin
TYPED := $(wildcard ratelimit/*/*.pxd)

# What a target needs of the system: a test, then the packages of Debian that make it true.
PYTHON_TEST := $(PYTHON) -c 'import ensurepip, pathlib, sys, sysconfig; \
	sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())'
base := { command -v gcc && $(PYTHON_TEST); } || missing+=" gcc libc6-dev python3-dev python3-venv";
haproxy := command -v haproxy || missing+=" haproxy";
ip := command -v ip || missing+=" iproute2";
redis := command -v redis-server || missing+=" redis-server";
nginx := command -v nginx || missing+=" nginx-light";
perf := command -v perf || missing+=" linux-perf";
systemd := command -v systemd-analyze || missing+=" systemd";
curl := command -v curl || missing+=" curl";
chromium := command -v chromium || missing+=" chromium";
openssl := command -v openssl || missing+=" openssl";
wrk := command -v wrk || missing+=" wrk";
debootstrap := command -v debootstrap || missing+=" debootstrap";
images := $(foreach tool,buildah podman runc debootstrap,command -v $(tool) || missing+=" $(tool)";) \
	command -v dnsmasq || missing+=" dnsmasq-base";

# $(call system,NAME...): install what is missing, or say what it is. No service is left enabled.
define system
	@missing=; PATH=$$PATH:/usr/sbin:/usr/local/sbin; { $(foreach need,$(1),$($(need))) } &>/dev/null; \
	[[ $$missing ]] || exit 0; \
	as_root=; [[ $$EUID == 0 ]] || as_root=sudo; \
	if ! command -v apt-get >/dev/null || { [[ $$as_root ]] && ! command -v sudo >/dev/null; }; then \
		echo "Please install what these packages of Debian hold:$$missing" >&2; exit 1; \
	fi; \
	$$as_root sh tools/packages.sh $$missing
endef

.PHONY: help run test lint bench loadtest test-images lock clean

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

run: system-run $(VENV)/compiled ## the agent and HAProxy in front of a demo application; ARGS="--backend HOST:PORT" STORE=redis
ifeq ($(STORE),redis)
	socket=$(abspath $(VENV))/redis.sock; \
	setsid redis-server --port 0 --unixsocket $$socket --save '' --appendonly no --loglevel warning & \
	trap "kill $$! || true" EXIT; \
	RATELIMIT_STORE__URL=unix://$$socket $(BIN)/ratelimit up $(ARGS)
else
	exec $(BIN)/ratelimit up $(ARGS)
endif

test: system-test $(VENV)/compiled $(VENV)/group-test $(BIN)/promtool ## all tests compiled, then those without a server as plain Python
	$(BIN)/pytest -n $(WORKERS) --dist worksteal $(ARGS)
	RATELIMIT_PURE=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal -m "not integration and not packaging" $(ARGS)

lint: system-base $(VENV)/compiled $(VENV)/group-lint ## style, format, types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: system-bench $(VENV)/compiled $(VENV)/group-bench ## all benchmarks; ARGS="--quick NAME..."
	$(BIN)/python -m benchmarks $(ARGS)

loadtest: system-run $(VENV)/compiled $(VENV)/group-loadtest ## visitors and attackers, with locust; ARGS="--quick" or "--web"
	$(BIN)/python -m benchmarks.loadtest $(ARGS)

test-matrix: system-matrix $(VENV)/compiled $(VENV)/group-test ## other versions of HAProxy, Redis and Valkey; ARGS="NAME..."; needs root
	PYTEST_ADDOPTS="-n 2" $(BIN)/python -m tests.matrix $(ARGS)

test-images: system-images $(VENV)/compiled $(VENV)/group-test ## the images, built and started as docker-compose.yml says; needs root
	$(BIN)/python -m tests.images.engine
	$(BIN)/pytest tests/images $(ARGS)

lock: $(VENV)/group-lock ## the versions that an image has; ARGS=--upgrade for newer ones
	@pin() { $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" $(ARGS) "$$@"; }; \
	pin pyproject.toml -o locks/run.txt; \
	pin --group wheels -o locks/wheels.txt; \
	pin pyproject.toml --group lint -o locks/development.txt

clean: ## remove everything that was built
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find ratelimit -name '*.so' -delete
	find . -name __pycache__ -prune -exec rm -rf {} +

.PHONY: system-base system-run system-test system-bench system-images system-matrix
system-base:
	$(call system,base)
system-run:
	$(call system,base haproxy redis curl ip)
system-test:
	$(call system,base haproxy redis curl ip openssl systemd chromium)
system-bench:
	$(call system,base haproxy redis nginx wrk perf)
system-matrix:
	$(call system,base haproxy redis curl ip openssl debootstrap)
system-images:
	$(call system,base images curl ip)

$(VENV)/created: | system-base
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade 'pip >= 25.1'
	touch $@

$(VENV)/installed: $(VENV)/created pyproject.toml setup.py ratelimit/__init__.py
	$(BIN)/pip install -q --group compile
	RATELIMIT_NO_EXTENSIONS=1 PYTHONWARNINGS=ignore $(BIN)/pip install -q -e .
	touch $@

# Compiled apart from the installation, so that an edit compiles one module and not all. It has to:
# a stale extension would hide the edited file.
$(VENV)/compiled: $(VENV)/installed $(TYPED) $(TYPED:.pxd=.py)
	$(BIN)/python setup.py build_ext --inplace &>$@.log || { cat $@.log; exit 1; }
	$(BIN)/ratelimit version
	touch $@

# The program alone, out of Debian's package: promtool, which up to Debian 12 is a part of prometheus.
$(BIN)/promtool: | $(VENV)/created
	@if found=$$(command -v promtool); then ln -sf "$$found" $@; exit; fi; \
	command -v apt-get >/dev/null || { echo "Please install promtool, of Prometheus" >&2; exit 1; }; \
	as_root=; [[ $$EUID == 0 ]] || as_root=sudo; \
	cd $(VENV); \
	download() { apt-get download -qq promtool 2>/dev/null || apt-get download -qq prometheus; }; \
	download 2>/dev/null || { $$as_root apt-get update -qq; download; }; \
	dpkg-deb --fsys-tarfile prom*.deb | tar -x --strip-components=3 -C bin ./usr/bin/promtool; \
	rm prom*.deb

$(VENV)/group-%: $(VENV)/created pyproject.toml
	$(BIN)/pip install -q --group $*
	touch $@
