"""Random configurations that dwell on what is seldom written: `compare_reference.py --rare`."""
from compare_reference import Generator

THEMES = ["join", "suffix", "text", "condition", "regex", "default", "bounds", "substitution", "include", "names"]

# Line ends and white space as str.splitlines and str.isspace know them.
LINE_ENDS = ["\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\n\n", "\n"]
BLANKS = [" ", "\t", "  \t ", "\u00a0", "\u3000", "\x1f"]


class Rare(Generator):
    def __init__(self, seed):
        super().__init__(seed)
        self.themes = set(self.r.sample(THEMES, self.pick(1, 2, 3, 5)))
        # One in three may hold mistakes.
        self.wild = self.r.random() < 0.35
        self.joins = "join" in self.themes
        self.suffixes = "suffix" in self.themes or self.joins and self.r.random() < 0.6
        self.bounds = "bounds" in self.themes
        if self.bounds:
            self.keys += ["x_min", "x_max", "y_min", "x_fixed", "y_fixed", "shortname_fixed", "x_max_min", "x_s_max"]
            self.keys += ["_max", "dep_min"] if self.wild else []
        if self.suffixes:
            self.keys += ["x_s_t", "x_t_s", "_s", "y_s", "y_t"]
        if "names" in self.themes:
            self.names += ["é", "1", "a-b", "_x", "ab", "no", "only", "A"]
            self.sets += ["a", "x", "name", "variants"]

    def some(self, good, odd):
        """One of the good ones, or of the odd ones where mistakes are allowed."""
        return self.r.choice(odd if self.wild and self.r.random() < 0.3 else good)

    def value(self):
        r = self.r.random()
        if self.bounds and r < 0.4:
            sizes = ["1", "-3", "+4", " 5", "5_0", "1G", "1.5g", "1023M", "1e3K", "\u0663", "0", "007", "9" * 30, "1T", "1b", "-1K", "1_0k"]
            return self.some(sizes, ["1e1", "2.5", "1 M", "M", "", "0x10", "_1", "nan", "1e999M"])
        if r < 0.6 and "substitution" in self.themes:
            keys = self.keys + ["name", "shortname", "dep", "_name_map_file", "_short_name_map_file", "v", "no"]
            shape = lambda: self.pick("${%s}", "${%s}", "${%s}", "$%s", "${ %s }", "${%s", "$${%s}", "${${%s}}") % self.r.choice(keys)
            middle = "".join(self.pick(shape(), shape(), "-", " ", "'", "}") for _ in range(self.pick(1, 2, 3)))
            return self.pick("", "", '"', "'", "a ") + middle + self.pick("", "", '"', "'")
        if r < 0.75 and "text" in self.themes:
            return self.pick(
                '"\'a\'"', "'\"a\"'", '"a\'', '""', "''", "'", '"', '" x "', "'a' 'b'", '"a\\"b"', "a=b", "a:b", ": x", "a\t\tb", "a \\", "= 1",
                "\u00a0x\u00a0y", "//", "#", "a#b", "only a", "\\n", "\u00e9\U0001f600", "\x7f", "a\u200bb")
        return super().value()

    def key(self):
        if "text" in self.themes and self.r.random() < 0.3:
            return self.some(
                ["a b", "é", "k-1", "(v", "!x", "$k", "", "a[0]", "{x}", "x +", "variant s", "'q'", '"q"', "a,b", "x ?", "<x", "+", "~x", "\u00a0"],
                ["@k", "only", "no", "join", "variants", "x:y", "..", "-x", "include", "suffix", "del"])
        return super().key()

    def pattern(self):
        if "regex" in self.themes and self.r.random() < 0.6:
            return self.some(
                ["x|y", "(x|y)", ".", "..", "x_s", "x_[st]", r"\w", r"\w+", r"x\b", "(?i)X", "(?:x|k).*", "x*", "x??", ".*?", "[^x]", "[^x].*", "^x", "x$",
                 "x$$", "", "$", "x_s_t", ".*_t$", "(?<!a)x", "(?!.*_s).*", ".*(?<!_s)", "x{0,1}y", "[x-z]", "[]x]", r"a\.c", "foo|", "|foo", r"\d", "name",
                 "shortname", ".*name.*", "dep", "x ", "(.)o\\1", "k+", "[[:x]", "x{2", r"\Ax\Z", r"[\w-]+"],
                ["(", "*", "x**", ")", "[", "x{2,1}", "(?P<n>x)(?P<n>y)", "\\", r"\q", "(?z)", "a(?i)b", "x++"])
        return super().pattern()

    def assignment(self):
        if "text" not in self.themes or self.r.random() < 0.5:
            return super().assignment()
        regex = self.r.random() < 0.3
        if regex:
            op = self.pick("?=", "?+=", "?<=")
        else:
            op = self.some(["=", "=", "+=", "<=", "~=", "==", "=+", "-=", "? =", "+ =", "<<=", "= ="], [":=", "=:", "?~="])
        blank = lambda: self.pick("", " ", "  ", "\t")
        return (self.pattern() if regex else self.key()) + blank() + op + blank() + self.value()

    def condition(self):
        """A condition's filter with its sign, up to and including the colon."""
        if "condition" not in self.themes or self.r.random() < 0.4:
            return self.pick("", "", "!") + self.filter(True) + self.pick(":", ":", " :")
        negated = self.pick("!", "!", "! ", "")
        name = self.name
        label = lambda first: self.pick(name(), name(), name() + "." + name(), name() + ".." + name(), name() if first and not negated else "(%s)" % name())
        text = (negated or self.some(["", "", "+", "~", "?"], ["!!", "(", "-"])) + label(True)
        for _ in range(self.pick(0, 0, 1, 2)):
            text += self.some([",", ", ", " , ", ".", ".."], ["...", " ", ". ", ",,"]) + label(False)
        return text + self.some([":", ":", " :", "\t:", ",:", ".:", "..:"], ["", "::", ";"])

    def statement(self, ind, depth, cond, out):
        r = self.r.random()
        pad = " " * ind
        if r < 0.2 and "condition" in self.themes and depth < 6:
            head = pad + self.condition()
            while self.r.random() < 0.4:
                head += self.pick(" ", "", "  ") + self.condition()
            if self.r.random() < 0.6:
                inline = [self.assignment(), self.assignment(), "no " + self.filter(), "only " + self.filter(), "del x", "include inc.cfg", "suffix _c"]
                head += self.pick(" ", "", "  ") + self.some(inline, ["# c", "join a b", "variants:", "- a:"])
            out.append(head)
            for extra in self.r.sample([1, 1, 2, 3, 4], self.pick(0, 1, 2)):
                self.statement(ind + extra, depth + 1, True, out)
        elif r < 0.3 and self.suffixes:
            out.append(pad + "suffix " + self.some(["_s", "_t", "_s", "_vm1", "s", "-", "_", "_é", " _s", "_min"], ["_s # c", "a.b", "_s _t", ""]))
        elif r < 0.36 and self.suffixes:
            out.append(pad + "del " + self.some(["x", "x_s", "x_s_t", "x_t_s", "y", "y_s", "  x", "x # c", "name"], ["a.c", "x y", ".*"]))
        elif r < 0.46 and self.joins and (not cond or self.wild and self.r.random() < 0.05):
            words = [self.r.choice(self.names[:4]) for _ in range(self.pick(1, 2, 2, 2, 3, 4))]
            if self.r.random() < 0.6:
                # Equal words give equal names, which cannot be joined.
                words = list(dict.fromkeys(words))
            if self.r.random() < 0.2:
                words = [self.word() for _ in words]
            out.append(pad + "join " + self.pick(" ", ", ", ",").join(words))
        elif r < 0.52 and "include" in self.themes:
            out.append(pad + "include " + self.some(["inc.cfg", "sub/inc2.cfg", " inc.cfg ", "./inc.cfg", "sub/../inc.cfg"], ["missing.cfg", "inc.cfg # c", '"inc.cfg"', "sub"]))
        elif r < 0.56 and "text" in self.themes:
            filters = ["only " + self.filter() + ",", "no " + self.filter() + " #c", "no # c", "no  " + self.filter(), "only (a)", "no ( v = a )", 'no (v="")']
            out.append(pad + self.some(filters, ["only # c", "only a .b", "no a,.b", "no a , b", "only (v=a.b)", "only [v=a]", "no a b: c"]))
        elif r < 0.66 and depth < 4 and not cond and self.themes & {"default", "names", "join"}:
            self.variants(ind, depth, out)
        else:
            super().statement(ind, depth, cond, out)

    def variants(self, ind, depth, out):
        if not self.themes & {"default", "names"}:
            return super().variants(ind, depth, out)
        label = lambda: self.pick(self.name(), self.name(), self.name() + "." + self.name(), self.name() + "..", self.name() + ".." + self.name())
        kids = [label() for _ in range(self.pick(1, 2, 3, 4))]
        head = " " * ind + "variants"
        if self.r.random() < 0.5:
            head += self.pick(" ", "   ", " ") + self.r.choice(self.sets)
        gap = self.pick(" ", "  ")
        for _ in range(self.pick(0, 0, 1, 1, 2, 3)):
            meta = self.some(["[default=%s]", "[default = %s]", "[ default=%s ]", "[m=%s]"], ['[default="%s"]', "[%s]", "[default]%s", "[default=%s"])
            head += gap + meta % self.r.choice(kids)
        out.append(head + self.some([":", ":", " :", ": # c", ":   "], ["", ": x", "::"]))
        dash = ind + self.pick(1, 1, 2, 4) - (self.wild and self.r.random() < 0.1)
        for k in kids:
            at = dash - (self.r.random() < 0.05 and dash > ind + 1)
            sign = self.some(["", "", "@"], ["@@", "@ ", "!"])
            line = " " * at + "-" + self.pick("", " ", "  ") + sign + (k if self.r.random() < 0.95 else "" if sign == "@" or self.wild else k) + ":"
            if self.r.random() < 0.4:
                line += self.pick(" ", "", "  ") + self.some([self.filter(), "a..b", "(v=a).b", "a, b", "a b,", "# c", "a # c"], ["a , b", "a:", ".a"])
            out.append(line)
            if self.r.random() < 0.6:
                self.block(dash + self.pick(1, 2, 4), depth + 1, False, out)

    def noise(self, text):
        """White space and comments as seldom seen; most of it changes nothing."""
        out = []
        for line in text.split("\n"):
            body = line.lstrip(" ")
            indent = len(line) - len(body)
            if indent >= 8 and self.r.random() < 0.3:
                line = "\t" * (indent // 8) + " " * (indent % 8) + body
            if self.r.random() < 0.1:
                line += self.r.choice(BLANKS)
            if self.r.random() < 0.05:
                out.append(" " * self.r.randrange(9) + self.pick("# c", "// c", "", " ", "#", "\u00a0", "\t# x"))
            out.append(line)
        end = self.r.choice(LINE_ENDS)
        mixed = self.r.random() < 0.3
        return "".join(line + (self.r.choice(LINE_ENDS) if mixed and self.r.random() < 0.3 else end) for line in out)

    def case(self):
        files, flags, extra = super().case()
        if "default" in self.themes and self.r.random() < 0.6:
            flags = ["--defaults"] + (["--expand", self.pick("v", "w, u", "v,w", "a", "")] if self.r.random() < 0.4 else [])
        if "text" in self.themes:
            files = {name: self.noise(text) for name, text in files.items()}
        return files, flags, extra

    def damage(self, text):
        return super().damage(text) if self.wild else text
