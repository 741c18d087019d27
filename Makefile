# The commands of the project. `make demo` and `make test` are all a newcomer needs.
.PHONY: help setup build release test demo bench faults faults-mutations notice lint fmt

help:
	@echo "make demo    from an empty machine to a real two-host migration (installs what is missing; root)"
	@echo "make test    all tests, real guests included (root)"
	@echo "make bench   the figures of README.md, measured here"
	@echo "make faults  every fault in every phase of a migration, on real guests (root); CELL=FAULT/PHASE SEED=1 LANES=1"
	@echo "make faults-mutations  six broken rules, each caught by a cell of that table"
	@echo "make notice  how soon parties are told that another is gone; TIMES=20"
	@echo "make lint    formatter, clippy and dependency checks; changes nothing"
	@echo "make fmt     formats the code"

setup:
	@.ci/install

build: setup
	cargo build --locked --workspace --bins

release: setup
	cargo build --locked --release --workspace --bins

# nextest where it is installed: it runs each test in a process of its own and kills one that hangs.
test: build
	target/debug/vtctl image build --if-missing
	@if cargo nextest --version >/dev/null 2>&1; then \
	  cargo nextest run --locked --workspace; \
	else \
	  cargo test --locked --workspace --no-fail-fast; \
	fi

demo: release
	@tests/demo.sh target/release

bench: release
	cargo run --locked --release -p vt-tests --bin bench

# The debug build: a release build cannot be held in a phase that is over in a millisecond, nor break a rule.
SEED ?= 1
LANES ?= 1
TIMES ?= 20
FAULTS = cargo run --locked -p vt-tests --bin faults -- --seed $(SEED)
faults: build
	$(FAULTS) --lanes $(LANES) --json faults.json $(CELL)

faults-mutations: build
	$(FAULTS) --mutations

notice: build
	$(FAULTS) --notice $(TIMES)

lint: setup
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	@if cargo deny --version >/dev/null 2>&1; then cargo deny check; else echo "cargo-deny is not installed: advisories, licences and bans not checked"; fi

fmt:
	cargo fmt --all
