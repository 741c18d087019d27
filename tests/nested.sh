#!/bin/bash
# Two hosts that are VMs of this machine, installed by Ansible, and a guest that goes from one to the other and back. What was
# typed and what came takes the place of the transcript in DOCUMENT; where it fails, what there is of it is left in
# PACKAGES/failed. Used by `make nested`.
# usage: nested.sh PROGRAMS PACKAGES DOCUMENT
set -euo pipefail
programs=$(realpath "$1") packages=$2 document=$3 lab=nested
work=$(mktemp -d "${TMPDIR:-/tmp}/vtmesh-nested.XXXXXX")
transcript=$work/transcript
vtctl() { "$programs/vtctl" --color never --progress plain --lab "$lab" "$@"; }
passed=
cleanup() {
  # A vtctl that still makes it has to end first.
  for _ in $(seq 60); do
    [ -e "/var/lib/vtmesh/labs/$lab" ] || break
    vtctl lab down >/dev/null 2>&1 || sleep 1
  done
  rm -rf "$packages/failed"
  if [ -n "$passed" ]; then rm -rf "$work"; else mv "$work" "$packages/failed"; fi
}
trap cleanup EXIT

# typed WORDS…: runs them, shown and kept as a user would have typed them.
typed() {
  echo "\$ vtctl --lab $lab ${*@Q}" | sed "s#$work/##; s/'\([a-zA-Z0-9_=,.\/-]*\)'/\1/g" | tee -a "$transcript"
  vtctl "$@" 2>&1 | tee -a "$transcript"
}
boot_id() { vtctl -o json host show "$1" | python3 -c 'import json, sys; print(json.load(sys.stdin)["facts"]["boot_id"])'; }

typed lab up --driver nested --hosts 2 --packages "$packages"
for host in host1 host2; do typed host show "$host"; done
[ "$(boot_id host1)" != "$(boot_id host2)" ] || { echo "FAIL: both hosts have one kernel" >&2; exit 1; }
# The guest is small, and what is waited for is emulated twice where nothing is accelerated.
typed run multihost_migration -m host1,host2 -p mem=128M -p login_timeout=1800 -p mig_timeout=1800 \
  -p mem_probe=4M -p mem_rewrite=1M -p max_standstill=120000 -p clock_tolerance=60000 \
  --case-timeout 90m --results "$work/results"
typed lab exec host1 -- cat /proc/sys/kernel/random/boot_id
typed job list
typed lab down
left=$(ip netns list | grep -c "^vt-$lab-" || true)
[ "$left" = 0 ] && [ ! -e "/var/lib/vtmesh/labs/$lab" ] || { echo "FAIL: something of the lab is left" >&2; exit 1; }

python3 - "$document" "$transcript" <<'PYTHON'
import re, sys
document, transcript = sys.argv[1:]
text, said = open(document).read(), open(transcript).read()
begin, end = "<!-- transcript -->\n", "<!-- end -->\n"
before, rest = text.split(begin)
after = rest.split(end)[1]
open(document, "w").write(f"{before}{begin}```\n{said}```\n{end}{after}")
PYTHON
passed=yes
echo "PASS  the transcript is in $document"
