#!/usr/bin/python
# -*- coding: utf-8 -*-
# SPDX-License-Identifier: MIT OR Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: member
short_description: A host's place in a vtmesh cluster
description:
  - Makes a cluster of an unclaimed daemon, or joins it to one, and keeps the labels of its host exact.
  - The role is a wish at the beginning only. Who votes afterwards is the cluster's to say, because voters are 1, 3 or 5.
author: vtmesh (@vtmesh)
options:
  cluster:
    description: The cluster's name. A daemon that belongs to another one is left alone, and that is an error.
    type: str
    required: true
  name:
    description: The host's name in the cluster; its host name where none is given.
    type: str
  advertise:
    description: Where other hosts reach this one, C(ADDRESS:PORT).
    type: str
  role:
    description: The part it is to take.
    type: str
    choices: [voter, learner, witness]
    default: voter
  labels:
    description: Its labels, all of them. Others are cleared.
    type: dict
    default: {}
  init:
    description: Whether an unclaimed daemon makes the cluster; otherwise it joins by O(token).
    type: bool
    default: false
  token:
    description: A token of one use, for an unclaimed daemon that joins. It goes over standard input and is never written down.
    type: str
attributes:
  check_mode:
    description: Says what would change.
    support: full
  diff_mode:
    description: Shows the membership before and after.
    support: full
"""

EXAMPLES = r"""
- name: Join the cluster
  vtmesh.lab.member:
    cluster: lab-a
    advertise: 10.20.0.12:7465
    token: "{{ token.text }}"
    labels:
      rack: a
"""

RETURN = r"""
member:
  description: Cluster, name and labels of the host as they are now, or would be.
  type: dict
  returned: success
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.vtmesh.lab.plugins.module_utils.vtctl import Refused, status, vtctl


def membership(found):
    """What a status says of the host that answered."""
    if found is None:
        return {"cluster": None, "name": None, "labels": {}}
    own = [host for host in found["hosts"] if host["name"] == found["answered_by"]]
    return {"cluster": found["name"], "name": found["answered_by"], "labels": own[0]["labels"] if own else {}}


def claim(module, labels):
    """Makes the cluster, or joins it."""
    asked = module.params
    words = ["cluster", "init", "--name", asked["cluster"]] if asked["init"] else ["cluster", "join", "--token-file", "-"]
    if asked["name"]:
        words += ["--host" if asked["init"] else "--name", asked["name"]]
    if asked["advertise"]:
        words += ["--advertise", asked["advertise"]]
    words += ["--role", asked["role"]]
    for key, value in sorted(labels.items()):
        words += ["--label", "%s=%s" % (key, value)]
    vtctl(module, words, stdin=None if asked["init"] else asked["token"])


def relabel(module, before, labels):
    """Sets what differs and clears what is not wanted."""
    words = ["%s=%s" % (key, value) for key, value in sorted(labels.items()) if before["labels"].get(key) != value]
    words += ["%s-" % key for key in sorted(before["labels"]) if key not in labels]
    vtctl(module, ["host", "label", before["name"]] + words)


def main():
    module = AnsibleModule(
        argument_spec=dict(
            cluster=dict(type="str", required=True),
            name=dict(type="str"),
            advertise=dict(type="str"),
            role=dict(type="str", choices=["voter", "learner", "witness"], default="voter"),
            labels=dict(type="dict", default={}),
            init=dict(type="bool", default=False),
            token=dict(type="str", no_log=True),
        ),
        supports_check_mode=True,
    )
    asked = module.params
    labels = dict((key, str(value)) for key, value in asked["labels"].items())
    try:
        # In check mode the daemon may not be there yet: it would be unclaimed.
        known = status(module) if not module.check_mode or module.get_bin_path("vtctl") else None
    except Refused as refused:
        if not module.check_mode:
            module.fail_json(msg=refused.text)
        known = None
    before = membership(known)
    if before["cluster"] not in (None, asked["cluster"]):
        module.fail_json(msg="this host belongs to the cluster %s, not to %s; vtctl cluster leave takes it out" % (before["cluster"], asked["cluster"]))
    name = before["name"] or asked["name"] or module.run_command(["uname", "-n"])[1].strip().split(".")[0].lower()
    after = {"cluster": asked["cluster"], "name": name, "labels": labels}
    changed = before != after
    if changed and not module.check_mode:
        try:
            if before["cluster"] is None:
                if not asked["init"] and not asked["token"]:
                    module.fail_json(msg="this host belongs to no cluster, and there is no token to join one with")
                claim(module, labels)
            else:
                relabel(module, before, labels)
        except Refused as refused:
            module.fail_json(msg=refused.text)
    module.exit_json(changed=changed, member=after, diff={"before": before, "after": after})


if __name__ == "__main__":
    main()
