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
echo "What QEMU itself said (from the transcripts of its monitors, in $results/job):"
# job.json has a key a line, in the order of the alphabet: wall_ms is the last of a migration. Nothing but awk is needed.
awk -F': ' '
  /^      "migrations": \[/ { inside = 1; next }
  inside && /^      \]/ { exit }
  inside { key = $1; gsub(/[ "]/, "", key); value = $2; gsub(/[",]/, "", value); got[key] = value }
  inside && key == "wall_ms" {
    moves++
    if (got["source_pid"] == got["destination_pid"] || got["from"] == got["to"] || got["normal_pages"] == 0) { bad++ }
    printf "  %s (QEMU process %s) → %s (QEMU process %s): %d pages, %d KiB in %d ms, downtime %d ms by its own count, %.0f ms from call to RESUME\n", \
      got["from"], got["source_pid"], got["to"], got["destination_pid"], got["normal_pages"], \
      got["ram_transferred_bytes"] / 1024, got["total_ms"], got["qemu_downtime_ms"], got["wall_ms"]
  }
  END { if (moves != 2 || bad) { print "job.json does not show two moves between two QEMU processes" > "/dev/stderr"; exit 1 } }
' "$results/job/job.json"
resumed=$(grep -rh --include=qmp.jsonl -o '"event": *"RESUME"' "$results/job" | wc -l)
if [ "$resumed" -lt 3 ]; then echo "the transcripts show $resumed QEMU processes that ran the guest, not 3" >&2; exit 1; fi
echo "  3 QEMU processes said RESUME: the first boot and two arrivals"
say lab down --lab demo
trap - EXIT
echo
echo "PASS  a guest moved between two hosts and back in $((SECONDS - begun)) s; evidence: $results/job"
