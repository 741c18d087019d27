#!/usr/bin/python
# -*- coding: utf-8 -*-
# SPDX-License-Identifier: MIT OR Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: vtd_info
short_description: What there is of vtmesh on a host
description:
  - Says which vtd is installed, whether it runs, whether it has to be restarted, and which cluster it belongs to.
  - Changes nothing, and works on a host that has nothing of vtmesh.
author: vtmesh (@vtmesh)
options: {}
attributes:
  check_mode:
    description: Does the same in check mode.
    support: full
"""

EXAMPLES = r"""
- name: Look at the daemon
  vtmesh.lab.vtd_info:
  register: vtmesh_vtd
"""

RETURN = r"""
installed:
  description: Version of the program on disk; null where there is none.
  type: str
  returned: always
package:
  description: Version of the Debian package it is from; null where it is from none.
  type: str
  returned: always
running:
  description: Whether the daemon runs.
  type: bool
  returned: always
stale:
  description: Whether program or settings were changed after the daemon was started.
  type: bool
  returned: always
claimed:
  description: Whether it belongs to a cluster.
  type: bool
  returned: always
host:
  description: Its name in the cluster; null where it belongs to none.
  type: str
  returned: always
cordoned:
  description: Whether new cases are kept off it.
  type: bool
  returned: always
status:
  description: What `vtctl cluster status -o json` says; null where it belongs to no cluster or does not answer.
  type: dict
  returned: always
problem:
  description: Why a running daemon does not answer; null where it does.
  type: str
  returned: always
"""

import glob
import os
import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.vtmesh.lab.plugins.module_utils.vtctl import Refused, status

SETTINGS = "/etc/vtmesh/vtd.toml"


def started(pid):
    """When a process was started, in seconds of the wall clock."""
    with open("/proc/%d/stat" % pid) as stat:
        ticks = int(stat.read().rpartition(")")[2].split()[19])
    with open("/proc/uptime") as uptime:
        age = float(uptime.read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age


def is_stale(pid, program):
    """Whether something the process was started with is another one by now. Packages keep times of modification, so the
    times of change are compared."""
    files = [program, SETTINGS, SETTINGS + ".d"] + glob.glob(SETTINGS + ".d/*.toml")
    changed = [os.stat(file).st_ctime for file in files if os.path.exists(file)]
    replaced = os.readlink("/proc/%d/exe" % pid) != os.path.realpath(program)
    return replaced or any(time_ > started(pid) for time_ in changed)


def main():
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    found = dict(
        installed=None, package=None, running=False, stale=False, claimed=False, host=None, cordoned=False, status=None, problem=None
    )
    program = module.get_bin_path("vtd")
    if program:
        dummy, out, dummy = module.run_command([program, "--version"])
        found["installed"] = out.strip().rpartition(" ")[2] or None
    dpkg_query = module.get_bin_path("dpkg-query")
    if program and dpkg_query:
        dummy, out, dummy = module.run_command([dpkg_query, "--show", "--showformat=${Version}", "vtd"])
        found["package"] = out.strip() or None
    systemctl = module.get_bin_path("systemctl")
    pid = 0
    if program and systemctl:
        dummy, out, dummy = module.run_command([systemctl, "show", "--property=MainPID", "--value", "vtd.service"])
        pid = int(out.strip() or 0)
    if pid:
        found["running"] = True
        try:
            found["stale"] = is_stale(pid, program)
            found["status"] = status(module)
        except Refused as refused:
            found["problem"] = refused.text
        except OSError as error:
            found["problem"] = str(error)
    # A claim is a file: it is there when the daemon is not.
    found["claimed"] = found["status"] is not None or os.path.exists("/var/lib/vtmesh/cluster/claim")
    if found["status"]:
        found["host"] = found["status"]["answered_by"]
        own = [host for host in found["status"]["hosts"] if host["name"] == found["host"]]
        found["cordoned"] = any(host["cordoned"] for host in own)
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
