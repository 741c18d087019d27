#!/bin/bash
# The Ansible collection for real: fresh Debian machines, emulated, in a network namespace that ends with this script, become a
# cluster over ssh, and what each playbook did is looked at. Used by `make fleet`. Slow, because everything in the machines is
# emulated. usage: fleet.sh PROGRAMS DIRECTORY VERSION [STEP], with packages of VERSION and VERSION+next in DIRECTORY/packages
# After each step the machines are kept as they are then, in DIRECTORY/machines; with STEP (boot site settings add_host upgrade backup
# replace_host recover remove_host uninstall) it goes on from there: that step alone, or with `STEP..` those after it, too.
set -euo pipefail
project=$(realpath "$(dirname "$0")/..")
programs=$(realpath "$1") directory=$(realpath "$2") version=$3 only=${4:-boot..}
steps=(boot site settings add_host upgrade backup replace_host recover remove_host uninstall)
case " ${steps[*]} " in *" ${only%..} "*) ;; *) echo "there is no step $only: ${steps[*]}" >&2; exit 2 ;; esac
if [ "$(id -u)" != 0 ]; then echo "make fleet makes a network namespace: run it as root" >&2; exit 25; fi

say() { printf '\n\033[1m== %s (%d s)\033[0m\n' "$*" "$SECONDS"; }
fail() { echo "FAIL: $*" >&2; exit 1; }

if [ -z "${VTMESH_FLEET_INSIDE:-}" ]; then
  "$programs/vtctl" lab machine "$directory/machine"
  # Everything that is started from here on ends with this process, however that ends.
  VTMESH_FLEET_INSIDE=1 exec unshare --net --pid --fork --kill-child --mount --mount-proc -- "$0" "$@"
fi

machines=$directory/machines
mkdir -p "$machines"
work=$(mktemp -d "${TMPDIR:-/tmp}/vtmesh-fleet.XXXXXX")
trap 'rm -rf "$work"' EXIT
export PATH=$project/target/ansible/bin:$PATH ANSIBLE_CONFIG=$work/ansible.cfg
cat >"$work/ansible.cfg" <<CONFIG
[defaults]
inventory = $work/inventory.yml
collections_path = $project/target/collections
local_tmp = $work/tmp
[connection]
pipelining = true
[ssh_connection]
ssh_args = -F $work/ssh.conf -o ControlMaster=auto -o ControlPersist=600s -o ControlPath=$work/%h
CONFIG
cat >"$work/ssh.conf" <<CONFIG
Host *
  User root
  IdentityFile $directory/machine/key
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
  ConnectTimeout 10
  ServerAliveInterval 5
  ServerAliveCountMax 60
CONFIG
inventory() {
  members=("$@")
  {
    printf 'all:\n  children:\n    vtmesh:\n      children:\n        vtmesh_voters:\n          hosts:\n'
    for host in "$@"; do printf '            %s: {ansible_host: %s}\n' "$host" "$(address "$host")"; done
    printf '    vtmesh_clients: {hosts: {}}\n  vars:\n    ansible_python_interpreter: /usr/bin/python3\n'
    printf '    vtmesh_cluster_name: fleet\n    vtmesh_package_directory: %s\n' "$directory/packages"
    printf '    vtmesh_version: "%s"\n    vtmesh_labels: {made: by-ansible}\n' "$version"
    cat <<'SETTINGS'
    vtmesh_settings:
      host: {kind: vm}
      session: {renew: 6000, suspect: 15000, pause: 45000, kill: 60000, expire: 90000}
      raft: {heartbeat_ms: 2000, election_ms: [10000, 20000]}
SETTINGS
  } >"$work/inventory.yml"
}
address() { echo "10.88.0.1${1#lab}"; }
on() { ssh -F "$work/ssh.conf" "$(address "$1")" "${@:2}"; }

ip link set lo up
ip link add br0 type bridge
ip address add 10.88.0.1/24 dev br0
ip link set br0 up
# start HOST [STEP]: a machine, new, or as it was after a step; then it stands still until `monitor HOST cont`.
start() {
  local host=$1 number=${1#lab} disk=$machines/$1.qcow2
  ip tuntap add "tap$number" mode tap 2>/dev/null || true
  ip link set "tap$number" master br0 up
  [ -n "${2:-}" ] || [ -n "${KEEP_DISK:-}" ] || qemu-img create -q -f qcow2 -b "$directory/machine/disk.img" -F raw "$disk"
  nice -n 19 qemu-system-x86_64 -accel "${FLEET_ACCELERATOR:-tcg,thread=multi}" -machine q35 -cpu max -smp 1 -m 1024 -display none \
    -monitor "unix:$work/$host.monitor,server,nowait" ${2:+-S -loadvm "$2"} \
    -kernel "$directory/machine/kernel" -initrd "$directory/machine/initrd" -serial "file:$work/$host.serial" \
    -append "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0 systemd.hostname=$host vtmesh.address=$(address "$host")/24" \
    -drive "file=$disk,if=virtio,cache=unsafe" -device virtio-rng-pci \
    -netdev "tap,id=n,ifname=tap$number,script=no,downscript=no" \
    -device "virtio-net-pci,netdev=n,mac=52:54:00:88:00:0$number" &
  echo $! >"$work/$host.pid"
  running+=("$host")
}
running=()
# Cuts the power of a machine.
stop() {
  kill "$(cat "$work/$1.pid")"
  while kill -0 "$(cat "$work/$1.pid")" 2>/dev/null; do sleep 0.2; done
  local others=() host
  for host in "${running[@]}"; do [ "$host" = "$1" ] || others+=("$host"); done
  running=("${others[@]}")
}
# monitor HOST WORDS…: a command of QEMU's monitor, to its end.
monitor() {
  python3 - "$work/$1.monitor" "${*:2}" <<'PYTHON'
import socket, sys, time
until = time.monotonic() + 600
while True:
    try:
        (monitor := socket.socket(socket.AF_UNIX)).connect(sys.argv[1])
        break
    except OSError:
        if time.monotonic() > until:
            raise
        time.sleep(0.2)
monitor.settimeout(600)
def prompt():
    said = b""
    while not said.rstrip().endswith(b"(qemu)"):
        piece = monitor.recv(4096)
        if not piece:
            sys.exit("the machine ended")
        said += piece
    return said
prompt()
monitor.sendall(sys.argv[2].encode() + b"\n")
said = prompt().decode(errors="replace")
if "Error" in said:
    sys.exit(said)
PYTHON
}
# Keeps all machines as they are, at the same moment.
keep() {
  local host
  for host in "${running[@]}"; do monitor "$host" stop; done
  for host in "${running[@]}"; do monitor "$host" savevm "$1"; done
  printf 'running_then=(%s) members_then=(%s) version_then=%q\n' "${running[*]}" "${members[*]}" "$version" >"$machines/$1.state"
  for host in "${running[@]}"; do monitor "$host" cont; done
}
# Goes back to what `keep` kept.
back_to() {
  local host running_then=() members_then=() version_then=
  [ -r "$machines/$1.state" ] || fail "step $1 was never done: without a step all are"
  # shellcheck disable=SC1090
  . "$machines/$1.state"
  for host in "${running_then[@]}"; do start "$host" "$1"; done
  for host in "${running_then[@]}"; do monitor "$host" cont; done
  version=$version_then
  inventory "${members_then[@]}"
  for host in "${running_then[@]}"; do await "$host"; done
}
await() {
  local until=$((SECONDS + 900))
  until on "$1" true 2>/dev/null; do [ $SECONDS -lt $until ] || fail "$1 does not answer"; sleep 3; done
}

# play NAME FLAGS…: runs a playbook; its output is in $work/NAME.log, and shown where it fails.
play() {
  say "ansible-playbook vtmesh.lab.$*"
  ansible-playbook "vtmesh.lab.$1" "${@:2}" >"$work/play.log" 2>&1 || { tail -40 "$work/play.log" >&2; fail "$1 failed"; }
  grep -A9 'PLAY RECAP' "$work/play.log" | grep ok=
  ! grep -q vtj1_ "$work/play.log" || fail "a token was shown"
}
changed_nothing() { ! grep -A9 'PLAY RECAP' "$work/play.log" | grep -q 'changed=[1-9]' || fail "it changed something"; }
pids() { for host in "$@"; do on "$host" systemctl show --property MainPID --value vtd; done; }
status() { on lab1 vtctl -o json status | python3 -c "import json, sys; status = json.load(sys.stdin); print($1)"; }
expect() { [ "$2" = "$3" ] || fail "$1: $2, not $3"; }

live() { status "sorted(host['name'] for host in status['hosts'] if host['state'] == 'live')"; }
# until_live NAMES…: hosts that were restarted, or whose machine stood still, need a moment.
until_live() {
  local until=$((SECONDS + 600)) wanted
  wanted=$(python3 -c 'import sys; print(sys.argv[1:])' "$@")
  until [ "$(live 2>/dev/null)" = "$wanted" ]; do [ $SECONDS -lt $until ] || fail "live: $(live), not $wanted"; sleep 3; done
}

step_boot() {
  rm -f "$machines"/*
  inventory lab1 lab2
  for host in lab1 lab2 lab3; do start "$host"; done
  for host in lab1 lab2 lab3; do await "$host"; done
}

step_site() {
  play site --check --diff
  on lab1 test ! -e /usr/bin/vtd || fail "check mode installed something"
  play site --diff
  until_live lab1 lab2
  expect "labels" "$(status "{host['labels']['made'] for host in status['hosts']}")" "{'by-ansible'}"
  expect "open tokens" "$(on lab1 vtctl -o json cluster token list | grep -c '"state": "open"' || true)" 0
  play site --diff
  changed_nothing
  play site --check --diff
  changed_nothing
}

# A setting that vtd refuses never becomes the file that it reads.
step_settings() {
  local before
  before=$(pids lab1 lab2)
  if ansible-playbook vtmesh.lab.site --tags config -e '{"vtmesh_settings": {"host": {"knid": "vm"}}}' >"$work/play.log" 2>&1; then
    fail "it was taken"
  fi
  grep -q 'did you mean kind?' "$work/play.log" || fail "nobody said what was meant"
  expect "daemons after it" "$(pids lab1 lab2)" "$before"
  on lab1 vtd settings --check || fail "the file was replaced"
}

step_add_host() {
  local before
  before=$(pids lab1 lab2)
  inventory lab1 lab2 lab3
  play add_host -e vtmesh_host=lab3
  expect "daemons of the others after it" "$(pids lab1 lab2)" "$before"
  until [ "$(status "status['voters_live']")" = 3 ]; do sleep 2; done
}

step_upgrade() {
  play upgrade -e "vtmesh_version=$version+next"
  for host in lab1 lab2 lab3; do expect "package of $host" "$(on "$host" dpkg-query -Wf '${Version}' vtd)" "$version+next"; done
  expect "hosts that are live and open" "$(status "sum(host['state'] == 'live' and not host['cordoned'] for host in status['hosts'])")" 3
  version+=+next
  inventory lab1 lab2 lab3
}

step_backup() {
  play backup -e "vtmesh_backup=$work/fleet.snapshot"
  [ -s "$work/fleet.snapshot" ] || fail "there is no snapshot"
}

step_replace_host() {
  stop lab3
  start lab4
  await lab4
  inventory lab1 lab2 lab3 lab4
  play replace_host -e vtmesh_old=lab3 -e vtmesh_host=lab4
  expect "voters" "$(status "sorted(host['name'] for host in status['hosts'] if host['role'] == 'voter')")" "['lab1', 'lab2', 'lab4']"
  inventory lab1 lab2 lab4
}

# Most voters are gone: one host goes on alone, and one that comes back is taken in again.
step_recover() {
  if ansible-playbook vtmesh.lab.recover -e vtmesh_host=lab1 >"$work/play.log" 2>&1; then fail "it recovered what decides"; fi
  grep -q 'nothing to recover' "$work/play.log" || fail "nobody said why not"
  stop lab2
  stop lab4
  until [ "$(status "status['quorum']")" = False ]; do sleep 2; done
  play recover -e vtmesh_host=lab1
  expect "quorum after nobody agreed" "$(status "status['quorum']")" False
  play recover -e vtmesh_host=lab1 -e vtmesh_confirm_recover=fleet
  expect "quorum" "$(status "status['quorum']")" True
  KEEP_DISK=1 start lab2
  await lab2
  until on lab2 vtctl cluster leave --forget --yes; do sleep 5; done
  inventory lab1 lab2
  play site
  until_live lab1 lab2
}

step_remove_host() {
  play remove_host -e vtmesh_host=lab2
  expect "hosts that are live" "$(live)" "['lab1']"
}

step_uninstall() {
  inventory lab1
  play uninstall -e vtmesh_confirm_uninstall=fleet -e vtmesh_uninstall_data=true
  on lab1 'test ! -e /usr/bin/vtd -a ! -e /etc/vtmesh -a ! -e /var/lib/vtmesh' || fail "something is left on lab1"
}

before= begun=
for step in "${steps[@]}"; do
  if [ "$step" = "${only%..}" ] || { [ -n "$begun" ] && [ "$only" != "${only%..}" ]; }; then
    say "$step"
    if [ -z "$begun" ] && [ -n "$before" ]; then back_to "$before"; fi
    begun=yes
    "step_$step"
    keep "$step"
    say "$step PASS"
  fi
  before=$step
done
say "PASS  ${4:-a fleet was made, changed, upgraded, recovered and taken away by Ansible}"
