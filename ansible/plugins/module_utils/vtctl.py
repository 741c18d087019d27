# -*- coding: utf-8 -*-
# SPDX-License-Identifier: MIT OR Apache-2.0
"""How modules ask the daemon of their own host: through vtctl, over the daemon's socket."""

from __future__ import annotations

import json

SOCKET = "/run/vtmesh/vtd.sock"
NO_CLUSTER = "E0201"
NO_QUORUM = 21


class Refused(Exception):
    """vtctl ended with an error; `code` is that of its report."""

    def __init__(self, report):
        super().__init__(report["title"])
        self.code = report.get("code")
        evidence = ["%s: %s" % pair for pair in sorted(report.get("evidence", {}).items())]
        causes = ["because: %s" % cause for cause in report.get("causes", [])]
        helps = ["help: %s" % line for line in report.get("help", [])]
        self.text = "\n".join(["%s [%s]" % (report["title"], self.code)] + evidence + causes + helps)


def vtctl(module, words, stdin=None):
    """Runs `vtctl words -o json` and returns what it says; `Refused` where it refuses."""
    program = module.get_bin_path("vtctl", required=True)
    command = [program, "--endpoint", SOCKET, "-o", "json"] + words
    code, out, err = module.run_command(command, data=stdin)
    for text in (out, err):
        try:
            value = json.loads(text)
        except ValueError:
            continue
        if value.get("schema") == "vtmesh/v1/error":
            raise Refused(value)
        if code in (0, NO_QUORUM):
            return value
    raise Refused({"title": "vtctl ended with %d" % code, "evidence": {"said": (err or out).strip()[:2000]}})


def status(module):
    """The cluster as this host's daemon sees it; None for a daemon that belongs to none."""
    try:
        return vtctl(module, ["cluster", "status"])
    except Refused as refused:
        if refused.code == NO_CLUSTER:
            return None
        raise
