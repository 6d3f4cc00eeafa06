# lazyfs: build, try, test. Each target installs what it lacks (Debian packages and a locked
# virtual environment); "make help" lists them.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
LOCK := $(BIN)/pip-compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links \
	--no-emit-options --strip-extras --no-header --allow-unsafe

# What building and running lazyfs needs, and what the tests and benchmarks need besides.
PACKAGES := python3-venv fuse3
TEST_PACKAGES := docker-registry skopeo umoci crun fuse-overlayfs busybox-static erofs-utils e2fsprogs cryptsetup-bin \
	zstd debootstrap attr acl systemd curl containerd runc gcc libc6-dev

# Packages of $(1) that dpkg does not have are installed; nothing is asked when all are there. Their
# services are not started: tests start what they need themselves, on loopback.
install = missing=$$(for name in $(1); do \
	dpkg-query -W -f '$${Status}' $$name 2>/dev/null | grep -q 'ok installed' || echo $$name; done); \
	if [ -n "$$missing" ]; then echo "installing:" $$missing; \
	$(SUDO) apt-get update -q >/dev/null; \
	$(SUDO) env DEBIAN_FRONTEND=noninteractive SYSTEMD_OFFLINE=1 apt-get install -y -q --no-install-recommends $$missing \
	>/dev/null; fi

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: packages
packages:
	@$(call install,$(PACKAGES))

.PHONY: test-packages
test-packages: packages
	@$(call install,$(TEST_PACKAGES))

.PHONY: venv
venv: packages $(VENV)/.installed ## build .venv with the command .venv/bin/lazyfs

$(VENV)/.installed: requirements/pip.txt requirements/dev.txt pyproject.toml | packages
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/pip.txt
	$(BIN)/python -m pip install --quiet --require-hashes --only-binary :all: \
		-r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	$(BIN)/python -m compileall -q lazyfs registry cache
	touch $@

.PHONY: demo
demo: venv ## convert a small real image, mount it, read it, show how little was fetched
	@PATH=$(CURDIR)/$(BIN):$$PATH examples/demo.sh

.PHONY: lint
lint: venv ## the static checks
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: test
test: venv test-packages ## all tests (root and /dev/fuse; real registry, mounts and kernel oracles)
	$(BIN)/pytest $(PYTEST_ARGS)

FUZZ_EXAMPLES ?= 2000
FUZZ_MOUNTS ?= 20

.PHONY: fuzz
fuzz: venv test-packages ## break EROFS images in many ways (hours; FUZZ_EXAMPLES, FUZZ_MOUNTS: how many)
	LAZYFS_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) LAZYFS_FUZZ_MOUNTS=$(FUZZ_MOUNTS) $(BIN)/pytest -s \
		tests/pure/test_erofs_fuzz.py tests/io/test_erofs_corrupted.py tests/mount/test_erofs_broken.py

.PHONY: round-trips
round-trips: venv test-packages ## convert, mount and compare large images of many kinds (half an hour)
	LAZYFS_ROUND_TRIPS=full $(BIN)/pytest -s tests/mount/test_round_trips.py

.PHONY: faults
faults: venv test-packages ## break registry, network, cache disk and daemon; what readers get (FAULTS_ARGS)
	@$(BIN)/python -m faults $(FAULTS_ARGS)

SECONDS ?= 300

.PHONY: soak
soak: venv test-packages ## 200 readers under random faults and SIGKILLs of the daemon, for SECONDS; a report
	@$(BIN)/python -m tests.support.soak --seconds $(SECONDS)

.PHONY: check
check: lint test ## what CI runs

.PHONY: format
format: venv ## bring the sources into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: bench
bench: venv test-packages ## cold starts over two kinds of lines beside full pulls and peers (5 minutes)
	$(BIN)/python -m benchmarks.matrix --short

.PHONY: bench-full
bench-full: venv test-packages ## the whole matrix (hours; BENCH_ARGS picks: see benchmarks/README.md)
	$(BIN)/python -m benchmarks.matrix --plot docs/matrix.svg $(BENCH_ARGS)

.PHONY: bench-local
bench-local: venv test-packages ## mounts, reads, memory beside the kernel's EROFS and an unpacked folder (some minutes)
	$(BIN)/python -m benchmarks

.PHONY: bench-convert
bench-convert: venv test-packages ## compare a conversion with the same work by separate tools (some minutes)
	$(BIN)/python -m benchmarks.conversion

.PHONY: lock
lock: venv ## resolve the versions of all requirements anew
	$(LOCK) --extra containerd -o requirements/dev.txt pyproject.toml requirements/dev.in
	$(LOCK) -o requirements/pip.txt requirements/pip.in

.PHONY: proto
proto: venv ## generate the messages of containerd's API from their .proto files
	cd lazyfs/snapshotter/api && $(CURDIR)/$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. *.proto
	sed -i 's/^import snapshots_pb2/from lazyfs.snapshotter.api import snapshots_pb2/' \
		lazyfs/snapshotter/api/containerd_pb2.py lazyfs/snapshotter/api/containerd_pb2.pyi

.PHONY: clean
clean: ## remove what was built
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
