#!/usr/bin/env python3
"""Compare random configurations with the reference implementation.

    VENV/bin/python compare_reference.py EXPANDER [--rare] [--from SEED] [--count N] [--keep DIR]

EXPANDER prints JSON lines as `vtctl cfg expand --json` does (the example `expand` of this crate will do). The reference comes
with `pip install avocado-framework-plugin-vt==113.0`. Each seed makes one configuration, so a failure can be repeated; with
`--rare` one that dwells on what is seldom written (rare.py).
Compared: the dicts, their order, the order of keys in them; of refused texts the file and line.
"""
import argparse
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import warnings

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
from virttest import cartesian_config as cc  # noqa: E402

MAX_DICTS = 300
# Crashes of the reference that depend on what it happens to evaluate; where ours comes is in DIFFERENCES.md.
DOCUMENTED = ("IndexError", "AttributeError: 'JoinFilter'")
RESERVED = ("name", "shortname", "dep", "_name_map_file", "_short_name_map_file")


class TooMuch(Exception):
    pass


class Generator:
    def __init__(self, seed):
        self.r = random.Random(seed)
        self.joins = self.r.random() < 0.3
        self.suffixes = self.r.random() < 0.3
        self.bounds = self.r.random() < 0.3
        self.names = list("abcde")
        self.sets = list("vwu")
        self.keys = ["x", "y", "k", "m", "x_s", "k_t", "foo", "a.c", "abc"]
        if self.bounds:
            self.keys += ["x_min", "x_max", "m_fixed", "y_max", "name_max", "x_min_max"]

    def pick(self, *items):
        return self.r.choice(items)

    def name(self):
        return self.r.choice(self.names)

    def label(self, cond=False):
        p = self.r.random()
        if p < 0.72 or cond and p < 0.8:
            return self.name()
        if p < 0.8:
            return "(%s)" % self.name()
        if cond:
            return self.name()
        return self.pick("(%s=%s)", "(%s=%s)", "( %s = %s )") % (self.r.choice(self.sets), self.name())

    def group(self, cond=False):
        return ".".join(self.label(cond) for _ in range(self.pick(1, 1, 1, 2, 2, 3)))

    def word(self, cond=False):
        return "..".join(self.group(cond) for _ in range(self.pick(1, 1, 1, 2)))

    def filter(self, cond=False):
        seps = [",", ", "] if cond else [",", ", ", " ", "  "]
        out = self.word(cond)
        for _ in range(self.pick(0, 0, 0, 1, 2)):
            out += self.r.choice(seps) + self.word(cond)
        return out

    def value(self):
        p = self.r.random()
        if p < 0.4 or self.bounds and p < 0.7:
            return self.pick("1", "2", "3", "10", "007", " 5") if p < 0.6 else self.pick("1K", "2G", "512", "1.5M", "")
        if p < 0.7:
            parts = [self.pick("${%s}" % self.r.choice(self.keys + ["name", "shortname", "dep", "_name_map_file", "no", "v"]),
                               "z", "-", "$x", "${", "}", "'", '"', " ") for _ in range(self.pick(1, 2, 3, 4))]
            return "".join(parts)
        return self.pick('"q"', "'r s'", "plain text", "a:b", "# no comment", "x = y", '"', "a\tb", "// x", "é${x}", '"a" b "c"')

    def key(self):
        return self.r.choice(self.keys + (["v", "name", "two words"] if self.r.random() < 0.1 else []))

    def pattern(self):
        return self.pick("x", "x.*", "a.c", ".*", "k|m", "(?!x).*", "[xk].*", "foo", "m", "x_.", "k_?t", "abc", "a.?c", "z*", "x{1}", "m$", "^k", ".*_s")

    def assignment(self):
        if self.r.random() < 0.25:
            return "%s %s %s" % (self.pattern(), self.pick("?=", "?+=", "?<="), self.value())
        return "%s %s %s" % (self.key(), self.pick("=", "=", "=", "=", "+=", "<=", "~="), self.value())

    def statement(self, ind, depth, cond, out):
        p = self.r.random()
        pad = " " * ind
        if p < 0.42:
            out.append(pad + self.assignment())
        elif p < 0.52:
            out.append(pad + self.pick("only ", "no ", "no ", "only  ") + self.filter() + self.pick("", "", "", " # c", ","))
        elif p < 0.64 and depth < 5:
            neg = self.pick("", "", "!")
            head = pad + neg + (self.filter(True) if not neg else self.filter(True)) + self.pick(":", ":", ":", " :")
            q = self.r.random()
            if q < 0.3:
                inner = []
                self.statement(0, 9, True, inner)
                out.append(head + " " + inner[0] if inner else head)
                if self.r.random() < 0.3:
                    self.block(ind + self.pick(1, 2, 3), depth + 1, True, out)
            else:
                out.append(head)
                self.block(ind + self.pick(1, 2, 4), depth + 1, True, out)
        elif p < 0.7:
            out.append(pad + "del " + self.r.choice(["x", "k", "m", "x_s", "foo", "y"]) + self.pick("", "", " # c"))
        elif p < 0.74 and self.suffixes:
            out.append(pad + "suffix " + self.pick("_s", "_t", "_vm1"))
        elif p < 0.78 and self.joins and not cond:
            out.append(pad + "join " + self.pick(" ", ", ").join(self.word() for _ in range(self.pick(1, 2, 2, 2, 3))))
        elif p < 0.8:
            out.append(pad + "include " + self.pick("inc.cfg", "sub/inc2.cfg"))
        elif p < 0.82:
            out.append(self.pick("", pad + "# comment", "    // x", "#"))
        elif not cond and depth < 4:
            self.variants(ind, depth, out)
        else:
            out.append(pad + self.assignment())

    def variants(self, ind, depth, out):
        head = " " * ind + "variants"
        named = self.r.random() < 0.35
        if named:
            head += " " + self.r.choice(self.sets)
        kids = [self.pick(self.name(), self.name(), self.name(), self.name() + "." + self.name()) for _ in range(self.pick(1, 2, 2, 3))]
        if self.r.random() < 0.15:
            head += " [default=%s]" % self.r.choice(kids)
        if self.r.random() < 0.03:
            head += " [m]" if self.r.random() < 0.5 else " [ z = a b ]"
        out.append(head + ":")
        dash = ind + self.pick(1, 2, 4)
        if self.r.random() < 0.03:
            dash = ind
        if self.r.random() < 0.03:
            return
        for k in kids:
            line = " " * dash + "-" + self.pick("", " ", " ", "  ") + self.pick("", "", "", "@") + k + ":"
            if self.r.random() < 0.2:
                line += self.pick(" ", "") + self.filter()
            out.append(line)
            if self.r.random() < 0.7:
                self.block(dash + self.pick(1, 2, 4), depth + 1, False, out)

    def block(self, ind, depth, cond, out):
        for _ in range(self.pick(0, 1, 1, 2, 3)):
            self.statement(ind, depth, cond, out)

    def text(self, top):
        out = []
        if top and self.r.random() < 0.7:
            for _ in range(self.pick(1, 2)):
                self.variants(0, 1, out)
        for _ in range(self.pick(1, 2, 3, 5, 7)):
            self.statement(0, 1 if top else 3, False, out)
        return "\n".join(out) + "\n"

    def damage(self, text):
        chars = list(text)
        extra = list(" \t:.,-=+?<~@()[]!#\"'$/ab\n") + ["..", ", ", " :", ": ", "- ", "@", "only ", "\u00a0", "\u00e9", "\r", "[default=a]", '""']
        for _ in range(self.pick(1, 1, 1, 2, 3)):
            if not chars:
                break
            i = self.r.randrange(len(chars))
            q = self.r.random()
            if q < 0.35:
                del chars[i]
            elif q < 0.8:
                chars.insert(i, self.r.choice(extra))
            else:
                chars[i] = self.r.choice(extra)
        return "".join(chars)

    def case(self):
        inc = "" if self.r.random() < 0.3 else "\n".join(self.assignment() for _ in range(2)) + "\n"
        if self.r.random() < 0.3:
            inc = self.text(False).replace("include", "# include")
        inc2 = "variants:\n  - a:\n    i = 1\n  - e:\n" if self.r.random() < 0.5 else "only a, b\ni2 = ${x}\n"
        text = self.text(True)
        if self.r.random() < 0.4:
            text = self.damage(text)
        extra, flags = [], []
        if self.r.random() < 0.15:
            flags = ["--defaults"]
            if self.r.random() < 0.5:
                flags += ["--expand", self.pick("v", "w, u", "v,w")]
        if self.r.random() < 0.15:
            extra = [self.pick("only " + self.filter(), "no " + self.filter(), self.assignment(), "variants:\n - a:\n - q:\n")]
        return {"input.cfg": text, "inc.cfg": inc, "sub/inc2.cfg": inc2}, flags, extra


def reference(flags, extra):
    def late(*_):
        raise TooMuch()

    signal.signal(signal.SIGALRM, late)
    signal.alarm(8)
    try:
        defaults = "--defaults" in flags
        expand = [x.strip() for x in flags[2].split(",")] if len(flags) > 1 else []
        parser = cc.Parser("input.cfg", defaults=defaults, expand_defaults=expand)
        for s in extra:
            parser.parse_string(s)
        out = []
        for d in parser.get_dicts():
            out.append(d)
            if len(out) > MAX_DICTS:
                raise TooMuch()
        return "ok", out
    except (cc.ParserError, cc.MissingIncludeError) as e:
        return "error", (e.filename, e.linenum, str(e))
    except TooMuch:
        return "skip", None
    except Exception as e:
        return "error", (None, None, "%s: %s" % (type(e).__name__, e))
    finally:
        signal.alarm(0)


def difference(expander, flags, extra):
    kind, want = reference(flags, extra)
    if kind == "skip":
        return None, kind
    run = subprocess.run([expander, "input.cfg"] + extra + flags, capture_output=True, timeout=30)
    err = run.stderr.decode("utf-8", "replace")
    if run.returncode not in (0, 3):
        return "exit status %d: %s" % (run.returncode, err[:300]), kind
    if kind == "error":
        name, line, text = want
        if run.returncode == 0 and text.startswith(DOCUMENTED):
            return None, "documented"
        if run.returncode == 0:
            return "reference refuses (%s:%s %s), we print %d lines" % (name, line, text, run.stdout.count(b"\n")), kind
        if name and line and line > 0 and not re.search(r"%s:%s(?!\d)" % (re.escape(name), line), err):
            return "reference: %s:%s %s\nwe: %s" % (name, line, text, err), kind
        return None, kind
    if run.returncode:
        return "reference gives %d dicts, we refuse: %s" % (len(want), err), kind
    got = [json.loads(l) for l in run.stdout.decode("utf-8").split("\n") if l]
    for i, w in enumerate(want):
        if i >= len(got):
            return "%d dicts, want %d" % (len(got), len(want)), kind
        if w != got[i]:
            keys = [k for k in sorted(set(w) | set(got[i])) if w.get(k) != got[i].get(k)]
            return "dict %d (%s): %s" % (i + 1, w["name"], "; ".join("%s want %r got %r" % (k, w.get(k), got[i].get(k)) for k in keys)), kind
        order = [k for k in w if k not in RESERVED]
        mine = [k for k in got[i] if k not in RESERVED]
        if order != mine:
            return "dict %d (%s): key order want %s got %s" % (i + 1, w["name"], order, mine), kind
    if len(got) != len(want):
        return "%d dicts, want %d" % (len(got), len(want)), kind
    return None, kind


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("expander")
    ap.add_argument("--from", dest="first", type=int, default=0)
    ap.add_argument("--count", type=int, default=1000)
    ap.add_argument("--keep")
    ap.add_argument("--rare", action="store_true")
    a = ap.parse_args()
    generator = Generator
    if a.rare:
        from rare import Rare as generator
    a.expander = os.path.abspath(a.expander)
    seen, failed = {}, 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.mkdir("sub")
        for seed in range(a.first, a.first + a.count):
            files, flags, extra = generator(seed).case()
            for name, text in files.items():
                with open(name, "w", encoding="utf-8", newline="") as f:
                    f.write(text)
            bad, kind = difference(a.expander, flags, extra)
            seen[kind] = seen.get(kind, 0) + 1
            if bad:
                failed += 1
                print("seed %d: %s" % (seed, bad[:600]))
                sys.stdout.flush()
                if a.keep:
                    d = os.path.join(a.keep, str(seed))
                    os.makedirs(d + "/sub", exist_ok=True)
                    for name, text in files.items():
                        with open(os.path.join(d, name), "w", encoding="utf-8", newline="") as f:
                            f.write(text)
                    with open(os.path.join(d, "why"), "w") as f:
                        f.write("%s\n%s %s\n" % (bad, flags, extra))
    print("%s; %d failed" % (", ".join("%d %s" % (n, k) for k, n in sorted(seen.items())), failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
