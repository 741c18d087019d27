//! A configuration becomes the matrix of a job: variants one after another into one packed blob, and of each what a plan
//! needs to know. Memory grows with the blob, not with the text of the variants.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use vt_cfg::{Config, Diagnostic};
use vt_protocol::{
    error::{ErrorCode, Report},
    job::{ScenarioInfo, shapes_a_run},
    matrix::{MatrixBuilder, MatrixError, Packed, VARIANTS_MAX},
    params::COMMAND_LINE,
};

/// How a configuration calls the statements that were typed behind it. Only those of `-p` assign anything.
const TYPED: &str = "<string>";

/// A configuration, expanded.
#[derive(Debug)]
pub struct Expanded {
    /// The matrix.
    pub packed: Packed,
    /// Its variants, in order.
    pub variants: Vec<Head>,
    /// Keys that are set, by the type of the variants that set them.
    pub keys: BTreeMap<Option<String>, BTreeSet<String>>,
}

/// What a plan needs to know of a variant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// What its cases are called: its short name where that is its alone, else its full one.
    pub name: String,
    /// Its `type`.
    pub kind: Option<String>,
    /// The variants in front of it that it depends on, as numbers from 0.
    pub parents: Vec<u32>,
}

/// Why a configuration did not become a matrix.
#[derive(Debug)]
pub enum Unexpanded {
    /// A mistake that only shows when variants are made.
    Mistake(Box<Diagnostic>),
    /// There are more variants, or more text in them, than a job takes.
    TooLarge(Report),
    /// No variant is left.
    Empty,
}

impl From<MatrixError> for Unexpanded {
    fn from(error: MatrixError) -> Self {
        Self::TooLarge(narrow(
            Report::new(ErrorCode::TooLarge, "the test matrix is too large").with("reason", error.to_string()),
        ))
    }
}

fn narrow(report: Report) -> Report {
    report.help("narrow it: --only FILTER, --no FILTER; `vtctl variants count` with the same flags counts what is left")
}

/// Expands a configuration. `place` finds the place on disk of a line of a file.
///
/// # Errors
/// It cannot be expanded, holds too much, or nothing.
pub fn expand(config: &Config, place: impl Fn(&str, u32) -> (String, u32)) -> Result<Expanded, Unexpanded> {
    // Counting is cheap where expanding is not. What cannot be counted is stopped at the bound.
    if let Ok(count) = config.count()
        && count > VARIANTS_MAX as u128
    {
        let report = Report::new(ErrorCode::TooLarge, format!("{count} variants are more than a job takes"));
        return Err(Unexpanded::TooLarge(narrow(report.with("bound", VARIANTS_MAX.to_string()))));
    }
    let mut builder = MatrixBuilder::new();
    let mut names: Vec<[String; 2]> = Vec::new();
    let mut variants = Vec::new();
    let mut dependencies = Dependencies::default();
    let mut keys: BTreeMap<Option<String>, BTreeSet<String>> = BTreeMap::new();
    let mut places = HashMap::new();
    for variant in config.variants() {
        let variant = variant.map_err(|mistake| Unexpanded::Mistake(Box::new(mistake)))?;
        let mut kind = None;
        let mut assignments = Vec::new();
        for (key, value, origin) in variant.params() {
            if key == "type" {
                kind = Some(value.trim().to_owned());
            }
            let on_disk = places.entry((origin.file, origin.line)).or_insert_with(|| match origin.file {
                TYPED => (COMMAND_LINE.to_owned(), 0),
                file => place(file, origin.line),
            });
            assignments.push((key, value, on_disk.clone()));
        }
        builder.add(
            variant.name(),
            assignments.iter().map(|(key, value, (file, line))| (*key, *value, file.as_str(), *line)),
        )?;
        let set = keys.entry(kind.clone()).or_default();
        for (key, ..) in assignments {
            if !set.contains(key) {
                set.insert(key.to_owned());
            }
        }
        let parents = dependencies.parents(variant.dep(), &names);
        names.push([variant.name().to_owned(), variant.short_name().to_owned()]);
        variants.push(Head { name: String::new(), kind, parents });
    }
    if variants.is_empty() {
        return Err(Unexpanded::Empty);
    }
    let mut shared: HashMap<&str, u32> = HashMap::new();
    names.iter().for_each(|[_, short]| *shared.entry(short).or_default() += 1);
    for (variant, [full, short]) in variants.iter_mut().zip(&names) {
        let own = !short.is_empty() && shared[short.as_str()] == 1;
        variant.name = if own { short } else { full }.clone();
    }
    Ok(Expanded { packed: builder.pack()?, variants, keys })
}

impl Expanded {
    /// Keys of the variants that run `info` that it does not read, in order. `runs` says what a type runs.
    pub fn ignored<'a>(
        &'a self,
        info: &ScenarioInfo,
        runs: impl Fn(Option<&str>) -> Option<&'a ScenarioInfo>,
    ) -> BTreeSet<&'a str> {
        let of_info = self.keys.iter().filter(|(kind, _)| runs(kind.as_deref()).is_some_and(|of| of.name == info.name));
        let all = of_info.flat_map(|(_, keys)| keys);
        all.map(String::as_str).filter(|key| !info.reads(key) && !shapes_a_run(key)).collect()
    }
}

/// Who depends on whom. As in Avocado-VT a dependency means every variant in front of the dependent one whose full name
/// has its labels in a row; what was filtered out, or comes later, is not waited for.
#[derive(Debug, Default)]
struct Dependencies {
    /// For each text how many variants were looked at, and which of them are meant.
    known: HashMap<String, (usize, Vec<u32>)>,
}

impl Dependencies {
    fn parents(&mut self, dep: &[String], before: &[[String; 2]]) -> Vec<u32> {
        let mut parents = BTreeSet::new();
        for text in dep {
            if !self.known.contains_key(text) {
                self.known.insert(text.clone(), (0, Vec::new()));
            }
            let Some((looked, found)) = self.known.get_mut(text) else { continue };
            for (number, [full, _]) in (0..).zip(before).skip(*looked) {
                if has_labels(full, text) {
                    found.push(number);
                }
            }
            *looked = before.len();
            parents.extend(found.iter().copied());
        }
        parents.into_iter().collect()
    }
}

/// Whether a name has these labels in a row: `a.b` is in `x.a.b` and not in `x.aa.b`.
fn has_labels(name: &str, labels: &str) -> bool {
    let starts = |at: usize| at == 0 || name.as_bytes()[at - 1] == b'.';
    let ends = |at: usize| at == name.len() || name.as_bytes()[at] == b'.';
    !labels.is_empty() && name.match_indices(labels).any(|(at, found)| starts(at) && ends(at + found.len()))
}

#[cfg(test)]
mod tests {
    use vt_cfg::{MemSource, Options};

    use super::*;

    fn config(text: &str, statements: &[&str]) -> Config {
        let mut files = MemSource::new();
        files.insert("a.cfg", text);
        let statements: Vec<String> = statements.iter().map(|one| (*one).to_owned()).collect();
        vt_cfg::parse(&files, "a.cfg", &statements, &Options::default()).unwrap()
    }

    fn expanded(text: &str, statements: &[&str]) -> Expanded {
        expand(&config(text, statements), |file, line| (file.to_owned(), line)).unwrap()
    }

    fn info(name: &str, params: &[&str]) -> ScenarioInfo {
        let params = params.iter().map(|key| ((*key).to_owned(), String::new(), String::new())).collect();
        let (summary, about) = (String::new(), String::new());
        ScenarioInfo { name: name.into(), summary, hosts: 1, params, types: vec![], also_reads: vec![], about }
    }

    #[test]
    fn variants_are_packed_with_the_places_of_their_values() {
        let text = "mem = 64\nvariants:\n  - a:\n      type = uptime\n  - b:\n";
        let all = expanded(text, &["smp = 2"]);
        let heads: Vec<_> = all.variants.iter().map(|head| (head.name.as_str(), head.kind.as_deref())).collect();
        assert_eq!(heads, [("a", Some("uptime")), ("b", None)]);
        let params = all.packed.open().unwrap().params(0).unwrap();
        let places: Vec<String> =
            params.iter().map(|(key, param)| format!("{key} {} {}", param.value, param.origin)).collect();
        assert_eq!(places, ["mem 64 a.cfg:1", "type uptime a.cfg:4", "smp 2 -p"]);
    }

    #[test]
    fn short_names_are_used_where_they_are_one_variants_alone() {
        let names = |text: &str| expanded(text, &[]).variants.into_iter().map(|head| head.name).collect::<Vec<_>>();
        assert_eq!(names("variants v:\n  - @a:\n  - b:\nvariants:\n  - x:\n"), ["x", "x.b"]);
        assert_eq!(names("variants:\n  - a:\n  - a:\n"), ["a", "a"]);
        assert_eq!(names("variants v:\n  - @a:\n  - b:\n"), ["(v=a)", "b"], "a default alone has no short name");
        assert_eq!(names("x = 1\n"), [""]);
    }

    #[test]
    fn dependencies_are_variants_in_front_whose_labels_are_named() {
        let text = "variants:\n  - install:\n  - reinstall:\n  - boot: install\n  - move: boot later\n  - later:\n";
        let parents = |statements: &[&str]| {
            let all = expanded(text, statements).variants;
            all.into_iter().map(|head| head.parents).collect::<Vec<_>>()
        };
        let none = Vec::new;
        assert_eq!(parents(&[]), [none(), none(), vec![0], vec![2], none()]);
        assert_eq!(
            parents(&["no install"]),
            [none(), none(), vec![1], none()],
            "who was filtered out is not waited for"
        );
        let (name, yes) = ("x.(v=a).b.c", ["x", "(v=a)", "(v=a).b", "b.c"]);
        assert!(yes.iter().all(|labels| has_labels(name, labels)));
        assert!(["", "v=a", "x.b", "c.x", "a).b"].iter().all(|labels| !has_labels(name, labels)));
    }

    #[test]
    fn too_many_and_none_are_told_apart() {
        let ten = (0..10).map(|n| format!("  - v{n}:\n")).collect::<String>();
        let many =
            format!("variants a:\n{ten}variants b:\n{ten}variants c:\n{ten}variants d:\n{ten}variants e:\n{ten}");
        let expand = |text: &str, only: &[&str]| expand(&config(text, only), |file, line| (file.to_owned(), line));
        let Err(Unexpanded::TooLarge(report)) = expand(&many, &[]) else { panic!("taken") };
        assert_eq!(report.title, "100000 variants are more than a job takes");
        assert!(report.help[0].contains("--only"), "{report:?}");
        assert_eq!(expand(&many, &["only (a=v1)"]).unwrap().variants.len(), 10_000);
        assert!(matches!(expand(&many, &["only nothing"]), Err(Unexpanded::Empty)));
    }

    #[test]
    fn keys_that_nobody_reads_are_told_by_scenario() {
        let text = "mem = 64\nimage_name = x\nvariants:\n  - a:\n      type = s\n      mem_vm1 = 1\n  - b:\n      type = t\n      other = 1\n";
        let all = expanded(text, &[]);
        let (s, t) = (info("s", &["mem"]), info("t", &["image_name"]));
        let runs = |kind: Option<&str>| [&s, &t].into_iter().find(|info| kind == Some(info.name.as_str()));
        assert_eq!(all.ignored(&s, runs).into_iter().collect::<Vec<_>>(), ["image_name"]);
        assert_eq!(all.ignored(&t, runs).into_iter().collect::<Vec<_>>(), ["mem", "other"]);
    }
}
