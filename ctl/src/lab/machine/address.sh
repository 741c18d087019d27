#!/bin/sh
# The card is a port of br0, which has the address vtmesh.address=ADDRESS/LENGTH of the kernel's command line; taps of guests come beside it.
set -e
address=$(sed -n 's/.*vtmesh\.address=\([^ ]*\).*/\1/p' /proc/cmdline)
ip link add br0 address "$(cat /sys/class/net/eth0/address)" type bridge stp_state 0 forward_delay 0
ip link set eth0 master br0 up
ip link set br0 up
ip address add "$address" dev br0
ip route add default dev br0
