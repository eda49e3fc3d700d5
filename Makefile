# HyperKD for QGIS: everything that can be done with a checkout, each with one command.
# Every target first does the set-up that it needs, and says so; the second time that takes
# no more than a look. Nothing is written outside build/, but for Debian packages that are
# missing, and for `make install`.

SHELL := /bin/sh
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

ROOT := $(CURDIR)
BUILD := $(ROOT)/build
# The engine's environment; another place by HYPERKD_ENGINE_ENV.
ENGINE_ENV := $(abspath $(or $(HYPERKD_ENGINE_ENV),$(BUILD)/engine))
ENGINE_PYTHON := $(ENGINE_ENV)/bin/python
# QGIS's own Python: never the first `python3` on the path, which may be another.
QGIS_PYTHON := /usr/bin/python3
# What runs the set-up: any Python from 3.9 on.
PYTHON := $(shell command -v python3.11 || command -v python3 || echo /usr/bin/python3)
TOOLS := build_tools
# Lines appear when they are printed, and no .pyc appears beside the sources.
export PYTHONUNBUFFERED := 1
export PYTHONDONTWRITEBYTECODE := 1
export HYPERKD_ENGINE_ENV := $(ENGINE_ENV)

# One thread: the models of tests are so small that a second one only waits for the first.
ENGINE_TESTS := OMP_NUM_THREADS=1 $(ENGINE_PYTHON) -m pytest -q --junitxml=$(BUILD)/reports

.PHONY: help demo test test-engine test-qgis test-matrix check bench engine-python package \
	install setup clean setup-engine setup-dev setup-qgis setup-qgis-tests \
	setup-chroot

help:  ## This list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "make %-14s %s\n", $$1, $$2}'

demo: setup-engine setup-qgis package  ## Classify the packaged scene with QGIS; results in build/demo
	@$(ENGINE_PYTHON) $(TOOLS)/demo.py --zip $(BUILD)/hyperkd.zip --engine $(ENGINE_PYTHON) $(BUILD)/demo

test: test-engine test-qgis  ## All tests that this machine can run, with the QGIS installed on it

test-engine: setup-dev  ## Tests without QGIS: the engine, the contract, the zip
	@$(ENGINE_TESTS)/engine.xml tests/contract tests/engine

test-qgis: setup-dev setup-qgis-tests package  ## Tests with the installed QGIS: algorithms, and the desktop
	@$(TOOLS)/test_qgis.sh installed

test-matrix: setup-dev setup-qgis-tests setup-chroot package  ## The QGIS tests on QGIS 3.40 and 3.44 (root, Debian)
	@$(TOOLS)/test_matrix.sh

check: setup-dev  ## Format, lint, types, spelling, tests without QGIS: under a minute
	$(ENGINE_PYTHON) -m ruff format --check .
	$(ENGINE_PYTHON) -m ruff check .
	$(ENGINE_PYTHON) -m mypy
	$(ENGINE_ENV)/bin/codespell
	@$(ENGINE_TESTS)/check.xml -n auto -m "not slow" tests/contract tests/engine

bench: setup-dev  ## Speed, memory and start-up of the engine; kept in build/bench
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$$(nproc)} $(ENGINE_PYTHON) -m benchmarks

engine-python: setup-engine  ## Print the engine's interpreter (make -s engine-python: nothing else)
	@echo $(ENGINE_PYTHON)

package: $(BUILD)/hyperkd.zip  ## The plugin's zip, as the plugin site takes it: build/hyperkd.zip

install: $(BUILD)/hyperkd.zip  ## Into your own QGIS profile, with an engine (PROFILE=name)
	@$(TOOLS)/system_packages.sh engine
	@$(PYTHON) $(TOOLS)/install.py --zip $< --profile $(or $(PROFILE),default) --with-engine

setup: setup-dev setup-qgis-tests  ## Only the set-up of the above

clean:  ## Delete build/, chroots included
	@$(TOOLS)/clean.sh $(BUILD)

setup-engine:
	@$(TOOLS)/system_packages.sh engine
	@$(PYTHON) $(TOOLS)/environment.py engine $(ENGINE_ENV)

setup-dev:
	@$(TOOLS)/system_packages.sh engine
	@$(PYTHON) $(TOOLS)/environment.py engine $(ENGINE_ENV) --dev

setup-qgis:
	@$(TOOLS)/system_packages.sh qgis

setup-qgis-tests:
	@$(TOOLS)/system_packages.sh qgis desktop
	@$(QGIS_PYTHON) $(TOOLS)/environment.py qgis-tests $(BUILD)/qgis-tests

setup-chroot:
	@$(TOOLS)/system_packages.sh chroot

# Made each time: it takes a second, and what has changed is for git to say.
.PHONY: $(BUILD)/hyperkd.zip
$(BUILD)/hyperkd.zip:
	@$(PYTHON) $(TOOLS)/package.py $@
