# Two commands: `make run` and `make test`. Each sets up what it needs and is quick when repeated.
PYTHON ?= python3
RUST_MINIMUM := 1.88
DISK_MINIMUM := 3000
export PYTHON RUST_MINIMUM DISK_MINIMUM

VENV := .venv
BIN := $(VENV)/bin
STAMPS := build
EVIDENCE := $(STAMPS)/evidence
STATIC_TARGET := x86_64-unknown-linux-gnu
STATIC := --target $(STATIC_TARGET) --config 'target.$(STATIC_TARGET).rustflags = ["-C", "target-feature=+crt-static"]'
# What a build needs, and what only tests, lint and benchmarks need.
PACKAGES := gcc libc6-dev python3-venv mmdebstrap e2fsprogs kmod uidmap debian-archive-keyring
TEST_PACKAGES := acpica-tools chromium cpio strace fdisk iproute2 iperf3 passt
BENCH_PACKAGES := qemu-system-x86
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help setup programs prisoner image update run test test-rust test-python test-kvm test-kvm-short test-debian evidence lint walls-matter \
	attacks-report docs flows-lock flows-report bench bench-kvm bench-many soak hostile fuzz fuzz-seeds fuzz-coverage clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(STAMPS)/host.stamp: scripts/check-host scripts/packages Makefile
	@sh scripts/check-host
	@sh scripts/packages $(PACKAGES)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/venv.stamp: $(STAMPS)/host.stamp pyproject.toml requirements.lock
	@echo "Setting up the Python environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(STAMPS)/test-packages.stamp: $(STAMPS)/host.stamp
	@sh scripts/packages $(TEST_PACKAGES)
	@touch $@

# Cargo itself knows best what is up to date. What runs inside the guest finds no shared libraries
# there, so it is linked statically; so is the hypervisor that VMs start with by the thousand, which
# spares each of them the dynamic linker.
programs: $(STAMPS)/host.stamp
	@mkdir -p target/release
	@cargo build --release --locked -p teuthis-hypervisor $(STATIC)
	@ln -f target/$(STATIC_TARGET)/release/teuthis-hypervisor target/release/teuthis-hypervisor
	@cargo build --profile kvm --locked -p teuthis-hypervisor --no-default-features
	@ln -f target/kvm/teuthis-hypervisor target/release/teuthis-hypervisor-kvm
	@cargo build --release --locked -p teuthis-guest -p teuthis-bench-work $(STATIC) --config profile.release.strip=true

# The attacker of tests/isolation inside the hypervisor's jail; never part of a package.
prisoner: $(STAMPS)/host.stamp
	@cargo build --quiet --locked -p teuthis-hypervisor --example prisoner

image: $(STAMPS)/venv.stamp programs
	@$(BIN)/python -m teuthis.images
	@$(BIN)/teuthis image build debian >/dev/null

update: $(STAMPS)/venv.stamp programs ## take the distribution's newest guest kernel and packages
	@$(BIN)/python -m teuthis.images --update
	@$(BIN)/teuthis image build debian --update

setup: $(STAMPS)/venv.stamp programs image ## everything that `teuthis run` needs

define HELLO
import platform
print("hello from Python", platform.python_version(), "in", platform.freedesktop_os_release()["PRETTY_NAME"])
print("on", platform.uname().version)
endef
export HELLO

run: setup ## run a Python program in Debian inside a virtual machine
	@$(BIN)/teuthis run --image debian -- python3 -c "$$HELLO"

test: test-rust test-python test-kvm-short evidence lint ## all tests and checks

test-rust: $(STAMPS)/host.stamp
	@echo "Tests of the Rust programs"
	@cargo test --workspace --locked --no-run
	@mkdir -p $(EVIDENCE) && rm -f $(EVIDENCE)/rust.log
	@TEUTHIS_EVIDENCE=$(CURDIR)/$(EVIDENCE)/rust.log cargo test --workspace --locked --quiet

test-python: setup prisoner $(STAMPS)/test-packages.stamp
	@echo "Tests of the Python package and of whole virtual machines"
	@rm -f $(EVIDENCE)/python.json
	@$(BIN)/python -m pytest -q

# One nested machine with the tiny guests and a stock kernel; the rest is `make test-kvm`.
test-kvm-short: setup test-rust
	@echo "Tests of the kvm processor on a genuine kvm_amd"
	@sh scripts/packages $(BENCH_PACKAGES)
	@$(BIN)/python -m pytest -q tests/nested/test_short.py

test-kvm: setup $(STAMPS)/test-packages.stamp ## test the kvm processor on a genuine kvm_amd inside QEMU's emulator
	@sh scripts/packages $(BENCH_PACKAGES)
	@$(BIN)/python -m pytest -q tests/nested --ignore tests/nested/test_short.py

# Of what both test suites saw: each flow's refusals must have been raised by a test of its entry.
evidence: test-rust test-python
	@$(BIN)/python -m tests.register.evidence

test-debian: setup $(STAMPS)/test-packages.stamp ## minutes of work in a Debian guest: Python's own tests, stress-ng, fio
	@$(BIN)/python -m pytest -q tests/debian

lint: $(STAMPS)/venv.stamp ## formatting, types, lints
	@echo "Lints and types"
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@cargo fmt --check
	@cargo clippy --workspace --locked --all-targets -- -D warnings
	@cargo clippy --locked -p teuthis-hypervisor --no-default-features -- -D warnings

walls-matter: setup prisoner ## take each wall away in turn and demand that a test notices
	@$(BIN)/python -m tests.isolation.walls_matter

attacks-report: setup prisoner ## write docs/attacks.md: what was tried from inside, what answered
	@$(BIN)/python -m tests.isolation.report

docs: $(STAMPS)/venv.stamp ## write what is made from the register: the drawing, the threat model
	@$(BIN)/teuthis squid -o docs/squid.svg
	@$(BIN)/python -m tests.register.threat_model

flows-lock: setup ## agree to a larger attack surface: REASON="what grew and why it must"
	@$(BIN)/python -m tests.register.lock "$(REASON)"

flows-report: setup ## write docs/flows.md and fuzzing.md: what stands behind each flow, what was seen of it
	@$(BIN)/python -m tests.register.report
	@if [ -e $(STAMPS)/fuzz/report.json ]; then $(BIN)/python -m fuzz.report; fi

bench: setup ## measure speed side by side with QEMU
	@sh scripts/packages $(BENCH_PACKAGES)
	@$(BIN)/python benches/bench.py
	@$(BIN)/python benches/devices.py
	@$(BIN)/python -m benches.start

VMS ?= 1000
bench-many: setup ## let VMS=n (1000) VMs idle side by side: the memory of each, and do all answer
	@$(BIN)/python -m benches.many $(VMS)

soak: setup ## run VMS=n (1000) short VMs: nothing may be left, nothing may grow
	@nice $(BIN)/python -m tests.soak $(VMS)

bench-kvm: setup ## measure the kvm processor: each way out, and speed side by side with QEMU/KVM
	@sh scripts/packages $(BENCH_PACKAGES)
	@$(BIN)/python benches/kvm.py

MINUTES ?= 5
hostile: setup ## attack from inside a guest for MINUTES=n (5)
	@$(BIN)/python -m tests.hostile $(MINUTES)

FLOW ?=
CARGO_FUZZ := 0.13.2
export PATH := $(CURDIR)/$(STAMPS)/cargo/bin:$(PATH)

$(STAMPS)/fuzz.stamp: $(STAMPS)/venv.stamp fuzz/requirements.lock
	@sh scripts/packages g++
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r fuzz/requirements.lock
	@cargo install --quiet cargo-fuzz --version $(CARGO_FUZZ) --locked --root $(STAMPS)/cargo
	@touch $@

fuzz: $(STAMPS)/fuzz.stamp ## fuzz every parser, or those of FLOW=x, for MINUTES=n (5)
	@$(BIN)/python -m fuzz --minutes $(MINUTES) --flow "$(FLOW)"

fuzz-seeds: setup $(STAMPS)/test-packages.stamp ## record a Debian boot and cut it into what fuzzers start from (fuzz/seeds)
	@$(BIN)/python -m fuzz.recorded

fuzz-coverage: $(STAMPS)/fuzz.stamp ## measure which branches the fuzzers take, for `make flows-report`
	@rustup component add llvm-tools
	@$(BIN)/python -m fuzz.coverage

clean: ## remove everything that was built here (downloads stay in the user's cache)
	rm -rf $(STAMPS) $(VENV) target
