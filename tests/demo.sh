#!/bin/bash
# From built programs to a real two-host migration: image, lab, run, what was seen, clean up. Used by `make demo`.
set -euo pipefail
bin=${1:?usage: demo.sh DIRECTORY-OF-PROGRAMS}
vtctl=$bin/vtctl
results=${VTMESH_DEMO_RESULTS:-$(mktemp -d /tmp/vtmesh-demo.XXXXXX)}
begun=$SECONDS

say() { printf '\n\033[1m$ vtctl %s\033[0m\n' "$*"; "$vtctl" "$@"; }

if [ "$(id -u)" != 0 ]; then echo "make demo makes network namespaces: run it as root" >&2; exit 25; fi
trap '"$vtctl" lab down --lab demo >/dev/null 2>&1 || true' EXIT
# A demo that was stopped in the middle leaves its lab; this one begins afresh.
"$vtctl" lab down --lab demo >/dev/null 2>&1 || true

say image build --if-missing
say lab up --lab demo --hosts 3
say cluster status --lab demo
say run multihost_migration -m host1,host2 --lab demo -r "$results/job"
say vm list --lab demo
echo
echo "What QEMU itself said (from the QMP transcripts in $results/job):"
python3 - "$results/job" <<'PY' 2>/dev/null || grep -rl '"event": *"RESUME"' "$results/job" || true
import json, pathlib, sys
job = json.loads(pathlib.Path(sys.argv[1], "job.json").read_text())
for case in job["cases"]:
    for m in case.get("migrations", []):
        print(f"  {m['from']} (pid {m['source_pid']}) -> {m['to']} (pid {m['destination_pid']}): "
              f"{m['normal_pages']} pages, {m['ram_transferred_bytes'] // 1024} KiB in {m['total_ms']} ms, "
              f"downtime {m['qemu_downtime_ms']} ms by QEMU's count, {m['wall_ms']:.0f} ms from call to resume")
PY
say lab down --lab demo
trap - EXIT
echo
echo "PASS  a guest moved between two hosts and back in $((SECONDS - begun)) s; evidence: $results/job"
