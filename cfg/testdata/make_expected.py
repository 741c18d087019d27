#!/usr/bin/env python3
"""Write the expected results of ok/*.cfg, and some random cases, with the reference implementation.

    VENV/bin/python make_expected.py

Lines `#!TEXT` of a case are its command line arguments. Cases beginning with `_` are includes of others.
`random.jsonl` holds one generated case a line: files, arguments, and the dicts or the place of the error.
"""
import json
import os

from compare_reference import Generator, cc, reference

here = os.path.dirname(os.path.abspath(__file__))


def options(args):
    flags, extra, i = [], [], 0
    while i < len(args):
        if args[i] == "--defaults":
            flags.append(args[i])
        elif args[i] == "--expand":
            flags += args[i : i + 2]
            i += 1
        else:
            extra.append(args[i].replace("\\n", "\n"))
        i += 1
    return flags, extra


def fixed_cases():
    os.chdir(os.path.join(here, "ok"))
    for name in sorted(os.listdir(".")):
        if not name.endswith(".cfg") or name.startswith("_"):
            continue
        with open(name, encoding="utf-8", newline="") as f:
            args = [l[2:].rstrip("\n") for l in f if l.startswith("#!")]
        flags, extra = options(args)
        expand = [x.strip() for x in flags[2].split(",")] if len(flags) > 1 else []
        parser = cc.Parser(name, defaults="--defaults" in flags, expand_defaults=expand)
        for s in extra:
            parser.parse_string(s)
        text = json.dumps(list(parser.get_dicts()), sort_keys=True, ensure_ascii=False, indent=1)
        with open(name[:-4] + ".json", "w", encoding="utf-8", newline="\n") as f:
            f.write(text + "\n")


def random_cases(folder, count):
    os.chdir(folder)
    os.makedirs("sub", exist_ok=True)
    out, seed = [], 900000
    while len(out) < count:
        seed += 1
        files, flags, extra = Generator(seed).case()
        for name, text in files.items():
            with open(name, "w", encoding="utf-8", newline="") as f:
                f.write(text)
        kind, result = reference(flags, extra)
        if kind == "skip" or kind == "ok" and (len(result) > 8 or not result):
            continue
        case = {"seed": seed, "files": files, "args": flags + extra}
        if kind == "ok":
            case["dicts"] = result
        else:
            if not result[0] and len(out) % 4:
                continue
            case["error"] = result[:2]
        out.append(json.dumps(case, ensure_ascii=False))
    with open(os.path.join(here, "random.jsonl"), "w", encoding="utf-8", newline="\n") as f:
        f.write("\n".join(out) + "\n")


if __name__ == "__main__":
    import tempfile

    fixed_cases()
    with tempfile.TemporaryDirectory() as folder:
        random_cases(folder, 200)
