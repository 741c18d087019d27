#!/usr/bin/env python3
"""Write the expected results of ok/*.cfg, and some random cases, with the reference implementation.

    VENV/bin/python make_expected.py

Lines `#!TEXT` of a case are its command line arguments. Cases beginning with `_` are includes of others.
`random.jsonl` and `rare.jsonl` hold one generated case a line: files, arguments, and the dicts or the place of the error.
"""
import json
import os

from compare_reference import Generator, cc, reference
from rare import THEMES, Rare

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


def run(seed, generator):
    """A case with its result; None if it says too little."""
    files, flags, extra = generator.case()
    for name, text in files.items():
        with open(name, "w", encoding="utf-8", newline="") as f:
            f.write(text)
    kind, result = reference(flags, extra)
    if kind == "skip" or kind == "ok" and (len(result) > 8 or not result) or sum(map(len, files.values())) > 3000:
        return None
    case = {"seed": seed, "files": files, "args": flags + extra}
    case.update({"dicts": result} if kind == "ok" else {"error": result[:2]})
    return case


def common_cases(count):
    out, seed = [], 900000
    while len(out) < count:
        seed += 1
        case = run(seed, Generator(seed))
        # Of crashes without a place a few are enough.
        if case and (case.get("error", [1])[0] or len(out) % 4 == 0):
            out.append(case)
    return out


def rare_cases(count):
    """As many for each theme; a join only counts if something was joined."""
    out, seed = [], 900000
    for theme in THEMES:
        found = 0
        while found < count:
            seed += 1
            generator = Rare(seed)
            case = run(seed, generator) if theme in generator.themes else None
            if not case or "error" in case and found % 5:
                continue
            if theme == "join" and not ("dicts" in case and any(l.strip().startswith("join ") for l in case["files"]["input.cfg"].splitlines())):
                continue
            out.append(case)
            found += 1
    return out


def random_cases(folder):
    os.chdir(folder)
    os.makedirs("sub", exist_ok=True)
    for name, cases in (("random.jsonl", common_cases(200)), ("rare.jsonl", rare_cases(24))):
        with open(os.path.join(here, name), "w", encoding="utf-8", newline="\n") as f:
            f.writelines(json.dumps(case, ensure_ascii=False) + "\n" for case in cases)


if __name__ == "__main__":
    import tempfile

    fixed_cases()
    with tempfile.TemporaryDirectory() as folder:
        random_cases(folder)
