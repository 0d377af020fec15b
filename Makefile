# pgnet: HTTP as part of a PostgreSQL transaction. `make` alone says what there is.

.DEFAULT_GOAL := help
SHELL := /bin/bash

EXTENSION := pgnet
PGNET_VERSION := $(shell sed -n "s/^default_version = '\(.*\)'/\1/p" pgnet.control)
SCRIPT := pgnet--$(PGNET_VERSION).sql
PARTS := $(sort $(wildcard extension/[0-9]*.sql))

# The server's own pg_config; empty where no server is installed yet, and then only help, deps, demo
# and test work. Found anew by the make that runs after the dependencies are there: an empty value
# is handed down like any other.
ifeq ($(strip $(PG_CONFIG)),)
PG_CONFIG := $(shell tools/find-pg-config)
endif
SUDO ?= $(if $(filter 0,$(shell id -u)),,sudo)
export PG_CONFIG

VENV := .venv
CLUSTER = $(PYTHON) tools/sandbox.py

DATA = $(sort $(SCRIPT) $(wildcard pgnet--*.sql))
# In this order: the first creates the extension, the last drops it.
REGRESS = extension signatures requests settings drop
REGRESS_OPTS = --inputdir=tests --outputdir=build/regress
SPECS = $(notdir $(basename $(sort $(wildcard tests/isolation/specs/*.spec))))

ifneq ($(PG_CONFIG),)
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# PYTHON is now the interpreter PL/Python was built with: the package goes where that one looks.
ifneq ($(PYTHON),)
PREFIX ?= /usr/local
PYTHON_SITE ?= $(shell cd / && $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
site := $(DESTDIR)$(PYTHON_SITE)
launcher := $(DESTDIR)$(PREFIX)/bin/pgnet
endif
endif

##@ Use

help: ## show this
	@awk 'BEGIN {FS = ":.*## "} \
	  /^##@ / {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@printf '\nPG_CONFIG=%s\n' "$(or $(PG_CONFIG),(no PostgreSQL server is installed yet))"

deps: ## install what use, demo and test need, from the distribution's packages
	@tools/deps run demo test

install: $(SCRIPT) install-package ## install the extension and its Python package for the server of PG_CONFIG
uninstall: uninstall-package ## remove both again; databases keep the extension until DROP EXTENSION

demo: ## see it work, from nothing: dependencies, a throwaway cluster, requests, answers
	@tools/deps run demo
	@$(MAKE) --no-print-directory installed-here
	@$(MAKE) --no-print-directory run-demo

psql: ## a sandbox to play in: a throwaway cluster, a worker, an echo server, and psql
	@tools/deps run
	@$(MAKE) --no-print-directory installed-here
	@$(MAKE) --no-print-directory run-psql

##@ Prove

test: ## run everything: verify, lint, pg_regress, isolation specs, pytest; about half an hour
	@tools/deps run demo test
	@$(MAKE) --no-print-directory installed-here
	@$(MAKE) --no-print-directory run-test

# The recipe is PGXS's own, which reads REGRESS above.
installcheck: build/regress ## run pg_regress on the cluster that PGHOST, PGPORT and PGUSER name

fuzz: ## random requests to a strict server: make fuzz CASES=200000; SEED=n makes the same ones again
	@tools/deps run demo test
	@$(MAKE) --no-print-directory installed-here
	@$(MAKE) --no-print-directory run-fuzz

chaos: ## faults at random, and a check of what came of it: make chaos SECONDS=600 SEED=1
	@tools/deps run demo test
	@$(MAKE) --no-print-directory installed-here
	@$(MAKE) --no-print-directory run-chaos

model: ## the queue against a model of it, in any order: make model SECONDS=600; SEED=n goes the same ways again
	@tools/deps run demo test
	@$(MAKE) --no-print-directory installed-here
	@$(MAKE) --no-print-directory run-model

mutants: ## break the product on purpose, and see that the tests notice: make mutants NAMES=no-fence; needs root
	@tools/deps run demo test
	@$(MAKE) --no-print-directory $(VENV)/stamp
	@$(VENV)/bin/python tools/mutants.py $(NAMES)

wheels: ## the tests of the wire and of the worker process, with the newest wheels of PyPI
	@tools/deps run demo test
	@$(MAKE) --no-print-directory installed-here
	@PYTHON=$(PYTHON) tools/run-wheels

lint: $(VENV)/stamp ## ruff, mypy, pgspot, shellcheck
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@tools/spot $(SCRIPT)
	@if command -v shellcheck >/dev/null; then shellcheck $(SHELL_SCRIPTS) && echo "shellcheck: $(SHELL_SCRIPTS)"; \
	  else echo "shellcheck is not installed: left out"; fi

verify: ## check that what is generated or said twice agrees, and that forbidden words are not there
	@tools/verify

bench: ## measure; the figures are of this machine
	@tools/deps run demo test
	@$(MAKE) --no-print-directory installed-here
	@$(MAKE) --no-print-directory run-bench

##@ Make

script: $(SCRIPT) ## join extension/*.sql into the extension's script

format: $(VENV)/stamp ## format the Python code
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

dist: verify ## pack a release from the last commit
	mkdir -p build
	git archive --format=zip --prefix=pgnet-$(PGNET_VERSION)/ --output=build/pgnet-$(PGNET_VERSION).zip HEAD
	@echo build/pgnet-$(PGNET_VERSION).zip

clean: clean-here ## remove what was built

.PHONY: help deps install uninstall demo psql test installcheck fuzz chaos model mutants wheels lint verify bench script format dist clean \
	install-package uninstall-package installed-here run-demo run-psql run-test run-regress run-isolation isolation-specs run-fuzz run-chaos run-model run-bench

# ---- what stands behind them

.PHONY: clean-here
clean-here:
	rm -rf build results regression.diffs regression.out .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

SHELL_SCRIPTS = $(shell grep -lE -d skip '^\#!/bin/(ba)?sh' tools/* .ci/run)

# The time stamp of a part says nothing after a checkout: the script is only written when its
# content changes.
$(SCRIPT): $(PARTS) tools/join
	@tools/join $(PARTS) > $@.new && if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

# Built beside its place and moved there, so that a session that starts meanwhile finds the package
# whole.
install-package: need-python
	@set -e; umask 022; new=$(site)/.pgnet-new; old=$(site)/.pgnet-old; \
	rm -rf $$new $$old; \
	(cd python/pgnet && find . -type f -not -name '*.pyc' -print0 | xargs -0 -I{} install -D -m 644 {} $$new/{}); \
	$(PYTHON) -m compileall -q -s $$new -p $(PYTHON_SITE)/pgnet $$new; \
	if [ -e $(site)/pgnet ]; then mv $(site)/pgnet $$old; fi; \
	mv $$new $(site)/pgnet; rm -rf $$old
	@install -d -m 755 $(dir $(launcher))
	@printf '#!%s -I\nimport sys\n\nfrom pgnet.cli.main import main\n\nsys.exit(main())\n' $(PYTHON) > $(launcher)
	@chmod 755 $(launcher)
	@echo "the package is in $(PYTHON_SITE)/pgnet, the worker is $(PREFIX)/bin/pgnet"

uninstall-package: need-python
	rm -rf $(site)/pgnet
	rm -f $(launcher)

.PHONY: need-python
need-python:
	@if [ -z "$(PG_CONFIG)" ]; then \
	  echo "no PostgreSQL server is installed here: make deps, or say which one: make PG_CONFIG=/path/to/pg_config" >&2; exit 1; fi
	@if [ -z "$(PYTHON)" ]; then \
	  echo "the PostgreSQL of $(PG_CONFIG) was built without PL/Python" >&2; exit 1; fi

ifeq ($(PG_CONFIG),)
installcheck: need-python
endif

installed-here: $(SCRIPT)
	@$(SUDO) $(MAKE) --no-print-directory PG_CONFIG=$(PG_CONFIG) install >/dev/null

build/regress build/isolation:
	mkdir -p $@

$(VENV)/bin/python:
	@echo "making $(VENV), for the tools of the tests"
	@$(PYTHON) -m venv --system-site-packages $(VENV)

$(VENV)/stamp: tests/requirements.txt | $(VENV)/bin/python
	@echo "installing $$(grep -c '^[^#]' $<) packages into $(VENV) by pip: half a minute or so, without a word"
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement tests/requirements.txt
	@touch $@

run-demo: need-python
	@$(PYTHON) demo/run.py

run-psql: need-python
	@$(CLUSTER) --worker --echo-server --allow loopback psql

run-regress: need-python
	@$(CLUSTER) --bare $(MAKE) --no-print-directory --silent installcheck || \
	  { cat build/regress/regression.diffs 2>/dev/null; exit 1; }

# Sessions step by step against each other, in a throwaway cluster that can prepare transactions;
# its environment names it. A snapshot of autovacuum would keep marks that are done.
# make run-isolation SPECS=cancel-record runs one.
run-isolation: need-python build/isolation
	@$(CLUSTER) --option max_prepared_transactions=10 --option autovacuum=off $(MAKE) --no-print-directory isolation-specs SPECS="$(SPECS)" || \
	  { cat build/isolation/regression.diffs 2>/dev/null; exit 1; }

isolation_regress = $(dir $(PGXS))../test/isolation/pg_isolation_regress
isolation-specs:
	@$(bindir)/psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --file=tests/isolation/support.sql
	@PGISOLATIONTIMEOUT=20 $(isolation_regress) --bindir=$(bindir) --inputdir=tests/isolation --outputdir=build/isolation \
	  $(if $(findstring --expecteddir,$(shell $(isolation_regress) --help)),--expecteddir=tests/isolation) \
	  --use-existing --dbname=$$PGDATABASE $(SPECS)

run-test: $(VENV)/stamp
	@MAKE="$(MAKE)" PYTEST_OPTIONS="$(PYTEST_OPTIONS)" tools/run-test

CASES ?= 100000
run-fuzz: SEED ?= $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
run-fuzz: $(VENV)/stamp
	@FUZZ_CASES=$(CASES) FUZZ_SEED=$(SEED) $(VENV)/bin/python -m pytest -q -s tests/wire/test_strict.py tests/database/test_strict_by_sql.py

SECONDS ?= 600
run-chaos: $(VENV)/stamp
	@PYTHONPATH=tests $(VENV)/bin/python -m chaos --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

run-model: SEED ?= $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
run-model: $(VENV)/stamp
	@MODEL_SECONDS=$(SECONDS) MODEL_SEED=$(SEED) $(VENV)/bin/python -m pytest -q -s --timeout=0 tests/database/flow/test_state_machine.py

run-bench: $(VENV)/stamp
	@for part in $(sort $(wildcard bench/*.py)); do $(VENV)/bin/python $$part || exit 1; done
