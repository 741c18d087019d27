# The commands of the project. `make demo` and `make test` are all a newcomer needs.
.PHONY: help setup build release test demo deb rpm fleet nested qemu-7.2 lint-ansible bench bench-ways bench-libvirt bench-images bench-cfg proofs model sim faults faults-mutations faults-libvirt matrix versions suite cancels notice restarts attacks writers fuzz lint fmt

help:
	@echo "make demo    from an empty machine to a real two-host migration (installs what is missing; root)"
	@echo "make test    all tests, real guests included (root)"
	@echo "make deb     Debian packages vtd and vtctl, in target/deb"
	@echo "make rpm     RPM packages of the same, in target/rpm; needs rpmbuild; built and looked into, not installed anywhere yet"
	@echo "make qemu-7.2  an older QEMU in target/qemu-7.2, unpacked from Debian 12's packages and not installed"
	@echo "make fleet   the Ansible collection on three fresh Debian machines, emulated (root, about an hour); STEP=recover does one step again, STEP=recover.. and the rest"
	@echo "make nested  a guest moved between two hosts that are VMs of this machine, installed by Ansible; writes docs/nested.md (root, slow where emulated)"
	@echo "make bench   the figures of README.md and docs/proofs.md, measured here"
	@echo "make bench-ways what carries a VM, compared: cost against bare QMP, throughput against tcp, readings (root)"
	@echo "make bench-libvirt  the same move by virsh, by vtctl through libvirt and over QMP, and by bare QMP (root)"
	@echo "make bench-images  images from host to host against scp, rsync and a TLS socket; one image to eight hosts over slow links; an NFS server against nfs-cp (root)"
	@echo "make bench-cfg  the configuration language against the reference implementation, and its other figures"
	@echo "make proofs  the counts that the tests take a share of: 100 joins, 20 reboots, 20 leaders killed at a barrier, 20 moves with no shared storage, with NFS, Gluster, iSCSI and Ceph each, 4000 power failures, 4000 changed bytes (root)"
	@echo "make model   random walks of many hosts' decisions for MINUTES (60); SEED=17 tells one walk"
	@echo "make sim     whole hosts under simulated faults for MINUTES (60); SEED=17 tells one run"
	@echo "make fuzz    every fuzz target for FUZZ_SECONDS (600) each; needs g++"
	@echo "make matrix  one guest moved in every way: transports, modes, both together, as a table (root); WAYS=\"tcp tls\" HOSTS=2"
	@echo "make versions the same between QEMU 7.2 and the installed one, over QMP and by libvirt, in target/versions as JSON and HTML (root); WAYS=\"tcp tls\""
	@echo "make suite   the multi-host tests of Avocado-VT's provider as they are, each once over tcp on the built-in guest, as a table (root); SUITE=…/multi_host.cfg ONLY=suspend"
	@echo "make cancels every phase of a migration cancelled TIMES (20) times, the guest alive and moved after each (root)"
	@echo "make faults  every fault in every phase of a migration, on real guests (root); CELL=FAULT/PHASE SEED=1 LANES=2; POOL=nfs, gluster, iscsi or rbd with their disks at a server"
	@echo "make faults-mutations  six broken rules, each caught by a cell of that table"
	@echo "make faults-libvirt  helper, libvirtd and daemons killed, and a host cut off, in the middle of a move by libvirt (root)"
	@echo "make writers a guest or an export that writes an image, whose host is cut off, not told, or frozen where our export fences, while the image goes to another: POOL=nfs, gluster, iscsi, shared or separate, COUNT (50) seeds; SEED=17 one (root)"
	@echo "make attacks a table of attacks on a real daemon: what refused each, and where it was written down"
	@echo "make notice  how soon parties are told that another is gone; TIMES=20 DIES=leader"
	@echo "make restarts  daemons restarted in the middle of a transfer, TIMES=10: no guest stops twice; NEXT=PATH of another vtd, which half of them upgrade to (root)"
	@echo "make lint    formatter, clippy and dependency checks; changes nothing"
	@echo "make lint-ansible  the same for the Ansible collection"
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

# Beside the installed one, for moves between two versions.
qemu-7.2:
	@tests/qemu-7.2.sh target/qemu-7.2
	@echo "vtctl lab up --qemu old=target/qemu-7.2/qemu"

VERSION ?= $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)

deb: release
	packaging/deb/build target/release target/deb $(VERSION)

rpm: release
	packaging/rpm/build target/release target/rpm $(VERSION)

# Ansible and its linters, in a place of their own, and the collection where they look for one.
ANSIBLE := target/ansible/bin
COLLECTIONS := $(CURDIR)/target/collections

$(ANSIBLE)/ansible-lint:
	python3 -m venv target/ansible
	$(ANSIBLE)/pip install --quiet ansible-core==2.19.14 ansible-lint==26.10.1 yamllint==1.38.0
	mkdir -p $(COLLECTIONS)/ansible_collections/vtmesh
	ln -sfn $(CURDIR)/ansible $(COLLECTIONS)/ansible_collections/vtmesh/lab

lint-ansible: $(ANSIBLE)/ansible-lint
	cd ansible && ../$(ANSIBLE)/yamllint .
	cd ansible && PATH=../$(ANSIBLE):$$PATH ANSIBLE_COLLECTIONS_PATH=$(COLLECTIONS) ../$(ANSIBLE)/ansible-lint

# The next version is the same programs in packages of another number.
fleet: release $(ANSIBLE)/ansible-lint
	packaging/deb/build target/release target/fleet/packages $(VERSION)
	packaging/deb/build target/release target/fleet/packages $(VERSION)+next
	target/release/vtctl image build --if-missing
	tests/fleet.sh target/release target/fleet $(VERSION) $(STEP)

# Hosts that are VMs: emulated ones, where KVM runs no guest here, and a guest that is emulated inside them.
nested: release $(ANSIBLE)/ansible-lint
	packaging/deb/build target/release target/nested $(VERSION)
	target/release/vtctl image build --if-missing
	PATH=$(CURDIR)/$(ANSIBLE):$$PATH ANSIBLE_COLLECTIONS_PATH=$(COLLECTIONS) tests/nested.sh target/release target/nested docs/nested.md

bench: release
	@.ci/install .ci/packages-bench
	cargo run --locked --release -p vt-tests --bin bench

bench-ways: release
	cargo run --locked --release -p vt-tests --bin bench -- --ways

bench-libvirt: release
	@.ci/install .ci/packages-bench
	cargo run --locked --release -p vt-tests --bin bench -- --libvirt

# Real configurations with the reference's own results, and a Python with the reference in it.
CORPUS ?= ../shared/corpus/cartesian
REFERENCE := target/cfg-reference

bench-images: release
	@.ci/install .ci/packages-bench
	cargo run --locked --release -p vt-tests --bin bench -- --images

bench-cfg: release $(REFERENCE)
	cargo build --locked --release -p vt-cfg --example bench
	target/release/examples/bench $(CORPUS) --python $(CURDIR)/$(REFERENCE)/bin/python \
	  --program "$(CURDIR)/target/release/vtctl cfg expand --json"

$(REFERENCE):
	python3 -m venv $@.new
	$@.new/bin/pip install --quiet avocado-framework-plugin-vt==113.0
	mv $@.new $@

# Seeds are printed: a failure can be done again. The profile is fast enough to count to the end and keeps every check.
PROVE = cargo test --locked --profile proofs
proofs: setup
	@.ci/install .ci/packages-ceph
	cargo build --locked --profile proofs --workspace --bins
	target/proofs/vtctl image build --if-missing
	VTMESH_FLIPS=2000 $(PROVE) -p vt-sync --test it damage -- --nocapture
	VTMESH_POWER_SEEDS=1000 $(PROVE) -p vt-tests --test it disk:: -- --nocapture
	VTMESH_LEADER_DEATHS=20 $(PROVE) -p vt-sync --test it leader_dies -- --nocapture
	VTMESH_JOINS=100 $(PROVE) -p vt-daemon --test mesh joins_survive -- --nocapture
	VTMESH_MOVES=20 $(PROVE) -p vt-tests --test it guests::unchanged -- --nocapture --test-threads 1
	VTMESH_REBOOTS=20 $(PROVE) -p vt-ctl --test image is_found -- --nocapture --test-threads 1

MINUTES ?= 60
# One seed where SEED is given by the user.
SEEDS = $(if $(filter command environment,$(firstword $(origin SEED))),--reproduce $(SEED),--minutes $(MINUTES))

model:
	cargo run --locked --release -p vt-tests --bin model -- $(SEEDS)

sim:
	cargo run --locked --release -p vt-tests --bin sim -- $(SEEDS)

# The table of attacks and what each was refused with.
attacks: build
	@if cargo nextest --version >/dev/null 2>&1; then \
	  cargo nextest run --locked -p vt-tests --no-capture attacks::; \
	else \
	  cargo test --locked -p vt-tests --test it attacks:: -- --nocapture --test-threads 1; \
	fi

COUNT ?= 50
writers: build
	cargo run --locked -p vt-tests --bin writers -- $(if $(POOL),--pool $(POOL)) --runs $(COUNT) $(if $(filter command environment,$(firstword $(origin SEED))),--reproduce $(SEED))

FUZZ_SECONDS ?= 600

fuzz:
	@for target in fuzz/targets/*.rs; do FUZZ_SECONDS=$(FUZZ_SECONDS) fuzz/run $$(basename $$target .rs) || exit 1; done

# The debug build: a release build cannot be held in a phase that is over in a millisecond, nor break a rule.
SEED ?= 1
LANES ?= 2
TIMES ?= 20
FAULTS = cargo run --locked -p vt-tests --bin faults -- --seed $(SEED) $(if $(POOL),--pool $(POOL))
faults: build
	$(FAULTS) --lanes $(LANES) --json faults.json $(CELL)

faults-mutations: build
	$(FAULTS) --mutations

# All of which the tests play the first two.
faults-libvirt: build
	VTMESH_LIBVIRT_FAULTS=7 cargo test --locked -p vt-tests --test it whoever_dies -- --nocapture

WAYS ?=
HOSTS ?= 2
MATRIX = cargo run --locked -p vt-tests --bin matrix --
matrix: build
	$(MATRIX) --hosts $(HOSTS) --json matrix.json $(WAYS)

versions: build
	$(MATRIX) --versions target/versions $(WAYS)

SUITE ?= ../shared/corpus/providers/tp-qemu/multi_host_migration/tests/cfg/multi_host.cfg
ONLY ?=
suite: build
	cargo run --locked -p vt-tests --bin suite -- --hosts $(HOSTS) --json suite.json $(SUITE) $(ONLY)

cancels: build
	$(MATRIX) --hosts $(HOSTS) --rounds $(TIMES) --json cancels.json cancels

notice: build
	$(FAULTS) --notice $(TIMES) $(if $(DIES),--dies $(DIES))

NEXT ?=
restarts: build
	cargo run --locked -p vt-tests --bin restarts -- --times $(TIMES) --json restarts.json $(if $(NEXT),--next $(NEXT))

# Advisories need their database from the network; everything else is checked without it.
lint: setup
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	@if ! cargo deny --version >/dev/null 2>&1; then \
	  echo "cargo-deny is not installed (cargo install cargo-deny): advisories, licences and bans not checked"; \
	else \
	  cargo deny --locked check bans licenses sources || exit 1; \
	  if cargo deny --locked fetch db; then cargo deny --frozen check advisories; \
	  else echo "the advisory database cannot be reached: advisories not checked"; fi; \
	fi

fmt:
	cargo fmt --all
