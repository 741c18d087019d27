#!/usr/bin/env python3
"""Write params.json: calls of Avocado-VT's own Params on sets that were written for this project, with what they gave.

    python3 -m venv VENV && VENV/bin/pip install avocado-framework-plugin-vt==113.0
    PYTHONUTF8=1 VENV/bin/python make_params.py

get_numeric is the one of the sources of January 2026, which reads prefixes of bases; release 113.0 does not yet.
"""
import json
import os

from virttest.utils_params import Params

here = os.path.dirname(os.path.abspath(__file__))


class Newer(Params):
    def get_numeric(self, key, default=0, target_type=int):
        value = self.get(key, default)
        return int(value, 0) if target_type is int and isinstance(value, str) else target_type(value)


def call(params, method, args, kwargs):
    if method == "getitem":
        return params[args[0]]
    if method == "object_params_chain":
        for name in args:
            params = params.object_params(name)
        return dict(params)
    if method == "object_counts":
        return list(params.object_counts(*args))
    result = getattr(params, method)(*args, **{k: {"int": int, "float": float}[v] for k, v in kwargs.items()})
    return dict(result) if isinstance(result, Params) else result


NUMBERS = "0 00 0_0 7 -7 +7 -0x1F 0XfF 0b102 0o8 0o17 0x 0x_f 0xf_ 1_000 1__0 _1 1_ 007 -007 7.0 1e3 --1 +-1 a 0xg".split()
FLOATS = "0 .5 5. -1.5e-3 1_0.5 1_.5 1e_3 1e400 0x10 1,5 e5 +2".split()
GROUPS = [
    (
        [["vms", "a b  a"], ["nics", "n1"], ["x_n1_a", "deep"], ["x_a", "vm"], ["x", "all"], ["x_n1", "nic"],
         ["x_n1_a_host2", "deeper"], ["x_host2", "host"], ["y_b_host2", "b2"], ["_a", "empty"], ["a", "plain"]],
        [("objects", ["vms"]), ("object_params", ["a"]), ("object_params_chain", ["host2", "a", "n1"]),
         ("object_params_chain", ["host2", "b", "n1"]), ("object_params_chain", ["a", "host2"]),
         ("object_params_chain", ["a", "a"]), ("object_params", [""]), ("object_params", ["n1_a"])],
    ),
    (
        [["k_v_v_v", "3"], ["k_v", "1"], ["k_v_v", "2"], ["_v_v", "0"], ["k_vv", "no"], ["kk_v_x", "no"]],
        [("object_params", ["v"]), ("object_params_chain", ["v", "v"])],
    ),
    (
        [[f"n{i}", text] for i, text in enumerate(NUMBERS)] + [["blank", "  12\t"]],
        [("get_numeric", [f"n{i}"]) for i in range(len(NUMBERS))] + [("get_numeric", ["blank"]), ("get_numeric", ["no", 3])],
    ),
    (
        [[f"f{i}", text] for i, text in enumerate(FLOATS)],
        [("get_numeric", [f"f{i}"], {"target_type": "float"}) for i in range(len(FLOATS)) if FLOATS[i] != "1e400"],
    ),
    (
        [["t", "true"], ["u", "TRUE"], ["v", " yes"], ["w", ""], ["x", "off"]],
        [("get_boolean", [key]) for key in "tuvwx"] + [("get_boolean", ["missing", True])],
    ),
    (
        [["l", "a, b,,c"], ["d", "a=1 a=2 b=  =3"], ["e", "=="], ["f", " "], ["c", "2"], ["c1", ""], ["bad", "two"], ["m", "-1"]],
        [("get_list", ["l", "", ","]), ("get_list", ["l"]), ("get_list", ["f"]), ("get_dict", ["d"]), ("get_dict", ["e"]),
         ("get_dict", ["f"]), ("get_dict", ["l", "", ","]), ("object_counts", ["c", "c"]), ("object_counts", ["bad", "c"]),
         ("object_counts", ["m", "c"]), ("copy_from_keys", [["m", "c1", "zz", "c"]]), ("drop_dict_internals", []),
         ("getitem", ["c1"]), ("getitem", ["c2"]), ("get", ["c2"])],
    ),
]

groups = []
for pairs, calls in GROUPS:
    shown = []
    for method, args, *rest in calls:
        entry = {"method": method, "args": args, **({"kwargs": rest[0]} if rest else {})}
        try:
            entry["result"] = call(Newer(pairs), method, args, rest[0] if rest else {})
        except Exception as error:
            entry["error"] = type(error).__name__
        shown.append(entry)
    groups.append({"params": pairs, "calls": shown})
with open(os.path.join(here, "params.json"), "w", encoding="utf-8") as f:
    json.dump(groups, f, ensure_ascii=False, indent=1)
    f.write("\n")
