//! The expanded test matrix of a job: every variant with its parameters, packed into one compressed blob.
//!
//! Variants differ in little: each text, and each assignment of a value to a key at a place, is held once and named by
//! its number. The blob is made once, by the client that expanded the configuration; everybody else hands its bytes on,
//! so that a job that is run again has the same matrix to the byte, and its digest says so.
//!
//! What may not happen here: memory that grows with what a blob announces instead of what was allowed.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::{
    codec::{self, CodecError, Versioned},
    ids::Digest,
    job::CASES_MAX,
    params::{Origin, Params},
};

/// Most variants of one matrix.
pub const VARIANTS_MAX: usize = CASES_MAX;
/// Most bytes of a packed matrix: with its cases it has to fit into a plan.
pub const PACKED_MAX: usize = 32 << 20;
/// Most bytes of a matrix that is not packed.
pub const MATRIX_MAX: usize = 64 << 20;

/// Why a matrix cannot be packed or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MatrixError {
    /// It holds more than one matrix may.
    #[error("{what}: {found} are more than {bound}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much there is.
        found: usize,
        /// The bound.
        bound: usize,
    },
    /// The bytes are no compressed data.
    #[error("the blob cannot be unpacked: {0}")]
    Garbled(String),
    /// What was unpacked is no matrix.
    #[error("the blob holds no matrix")]
    Codec(#[from] CodecError),
    /// A variant names a text, or an assignment, that is not there.
    #[error("the matrix names number {0} of a list that is shorter")]
    Dangling(u32),
}

/// A packed matrix, as it is sent and stored.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed(Vec<u8>);

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Packed({} bytes, {:?})", self.0.len(), self.digest())
    }
}

impl Packed {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// What tells this matrix from any other.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.0)
    }

    /// Unpacks and checks it.
    ///
    /// # Errors
    /// It is no matrix, or larger than one may be.
    pub fn open(&self) -> Result<Matrix, MatrixError> {
        within("bytes of a packed matrix", self.0.len(), PACKED_MAX)?;
        let garbled = |error: lz4_flex::block::DecompressError| MatrixError::Garbled(error.to_string());
        let (announced, compressed) = lz4_flex::block::uncompressed_size(&self.0).map_err(garbled)?;
        within("bytes of a matrix", announced, MATRIX_MAX)?;
        let bytes = lz4_flex::block::decompress(compressed, announced).map_err(garbled)?;
        let matrix: Matrix = codec::decode(&bytes, MATRIX_MAX)?;
        matrix.check()?;
        Ok(matrix)
    }
}

/// Variants with their parameters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Matrix {
    texts: Vec<String>,
    assignments: Vec<Assignment>,
    variants: Vec<Row>,
}

/// A value given to a key at a place, by the numbers of their texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Assignment {
    key: u32,
    value: u32,
    file: u32,
    line: u32,
}

/// A variant, by numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    name: u32,
    assignments: Vec<u32>,
}

impl Versioned for Matrix {
    const VERSION: u8 = 1;
}

fn within(what: &'static str, found: usize, bound: usize) -> Result<(), MatrixError> {
    if found <= bound { Ok(()) } else { Err(MatrixError::TooLarge { what, found, bound }) }
}

impl Matrix {
    /// How many variants it has.
    pub fn len(&self) -> usize {
        self.variants.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.variants.is_empty()
    }

    /// The full name of the variant with this number, from 0.
    pub fn name(&self, variant: u32) -> Option<&str> {
        Some(self.text(self.row(variant)?.name))
    }

    /// The value of a key of a variant.
    pub fn value(&self, variant: u32, key: &str) -> Option<&str> {
        let found = self.row(variant)?.assignments.iter().find(|one| self.text(self.assignment(**one).key) == key)?;
        Some(self.text(self.assignment(*found).value))
    }

    /// The parameters of a variant, in the order in which they were first set.
    pub fn params(&self, variant: u32) -> Option<Params> {
        let mut params = Params::new();
        for one in &self.row(variant)?.assignments {
            let Assignment { key, value, file, line } = self.assignment(*one);
            let origin = Origin { file: self.text(file).to_owned(), line };
            params.set(self.text(key), self.text(value), origin);
        }
        Some(params)
    }

    fn row(&self, variant: u32) -> Option<&Row> {
        self.variants.get(variant as usize)
    }

    /// Numbers were checked when the matrix was opened.
    fn text(&self, number: u32) -> &str {
        &self.texts[number as usize]
    }

    fn assignment(&self, number: u32) -> Assignment {
        self.assignments[number as usize]
    }

    fn check(&self) -> Result<(), MatrixError> {
        within("variants", self.variants.len(), VARIANTS_MAX)?;
        let there = |number: &u32, length: usize| (*number as usize) < length;
        let texts = |numbers: &[u32]| numbers.iter().find(|number| !there(number, self.texts.len())).copied();
        let dangling = self
            .assignments
            .iter()
            .find_map(|one| texts(&[one.key, one.value, one.file]))
            .or_else(|| self.variants.iter().find_map(|row| texts(&[row.name])))
            .or_else(|| {
                let mut used = self.variants.iter().flat_map(|row| &row.assignments);
                used.find(|number| !there(number, self.assignments.len())).copied()
            });
        dangling.map_or(Ok(()), |number| Err(MatrixError::Dangling(number)))
    }
}

/// Makes a matrix, variant after variant. Its memory is that of the matrix.
#[derive(Debug, Default)]
pub struct MatrixBuilder {
    matrix: Matrix,
    texts: HashMap<String, u32>,
    assignments: HashMap<Assignment, u32>,
    /// About as many as the encoded matrix will have.
    bytes: usize,
}

impl MatrixBuilder {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a variant: key, value, and file and line of the assignment.
    ///
    /// # Errors
    /// The matrix would become larger than one may be.
    pub fn add<'a>(
        &mut self,
        name: &str,
        params: impl IntoIterator<Item = (&'a str, &'a str, &'a str, u32)>,
    ) -> Result<(), MatrixError> {
        within("variants", self.matrix.variants.len() + 1, VARIANTS_MAX)?;
        let mut assignments = Vec::new();
        for (key, value, file, line) in params {
            let one = Assignment { key: self.text(key), value: self.text(value), file: self.text(file), line };
            assignments.push(self.assignment(one));
        }
        let row = Row { name: self.text(name), assignments };
        self.bytes += 8 + 3 * row.assignments.len();
        self.matrix.variants.push(row);
        within("bytes of a matrix", self.bytes, MATRIX_MAX)
    }

    /// Packs what was added.
    ///
    /// # Errors
    /// It is larger than a matrix may be.
    pub fn pack(self) -> Result<Packed, MatrixError> {
        let bytes = codec::encode(&self.matrix, MATRIX_MAX)?;
        let packed = lz4_flex::block::compress_prepend_size(&bytes);
        within("bytes of a packed matrix", packed.len(), PACKED_MAX)?;
        Ok(Packed(packed))
    }

    fn text(&mut self, text: &str) -> u32 {
        if let Some(known) = self.texts.get(text) {
            return *known;
        }
        let number = number(self.matrix.texts.len());
        self.bytes += text.len() + 2;
        self.matrix.texts.push(text.to_owned());
        self.texts.insert(text.to_owned(), number);
        number
    }

    fn assignment(&mut self, one: Assignment) -> u32 {
        *self.assignments.entry(one).or_insert_with(|| {
            self.bytes += 12;
            self.matrix.assignments.push(one);
            number(self.matrix.assignments.len() - 1)
        })
    }
}

/// Lists are far shorter than `u32` counts: [`MATRIX_MAX`] bytes hold fewer entries.
fn number(place: usize) -> u32 {
    u32::try_from(place).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packed(variants: &[(&str, &[(&str, &str)])]) -> Packed {
        let mut builder = MatrixBuilder::new();
        for (name, params) in variants {
            builder.add(name, params.iter().map(|(key, value)| (*key, *value, "a.cfg", 7))).unwrap();
        }
        builder.pack().unwrap()
    }

    #[test]
    fn a_matrix_comes_back_as_it_was_put_in() {
        let packed = packed(&[("big", &[("z", "1"), ("a", "")]), ("small", &[("z", "1")])]);
        let matrix = packed.open().unwrap();
        assert_eq!(
            (matrix.len(), matrix.name(0), matrix.name(1), matrix.name(2)),
            (2, Some("big"), Some("small"), None)
        );
        let params = matrix.params(0).unwrap();
        assert_eq!(params.iter().map(|(key, _)| key).collect::<Vec<_>>(), ["z", "a"], "in the order of setting");
        assert_eq!(params.get("z").unwrap().origin.to_string(), "a.cfg:7");
        assert_eq!((matrix.value(0, "a"), matrix.value(1, "a"), matrix.value(9, "a")), (Some(""), None, None));
        assert!(matrix.params(2).is_none());
    }

    #[test]
    fn the_same_variants_have_the_same_digest_and_others_another() {
        let one = packed(&[("a", &[("x", "1")])]);
        assert_eq!(one.digest(), packed(&[("a", &[("x", "1")])]).digest());
        assert_ne!(one.digest(), packed(&[("a", &[("x", "2")])]).digest());
    }

    #[test]
    fn bytes_are_golden() {
        let text: String = packed(&[("v", &[("k", "1")])]).bytes().iter().map(|b| format!("{b:02x}")).collect();
        // Length before packing, a literal run, then: version, texts, assignments (key 0, value 1, file 2, line 7), rows.
        assert_eq!(text, GOLDEN);
    }

    const GOLDEN: &str = "17000000f0080104016b013105612e6366670176010001020701030100";

    #[test]
    fn a_large_matrix_is_small_when_packed() {
        let mut builder = MatrixBuilder::new();
        for i in 0..VARIANTS_MAX {
            let own = format!("image_{i}");
            let keys: Vec<String> = (0..200).map(|key| format!("key_{key}")).collect();
            let shared = keys.iter().map(|key| (key.as_str(), "some value of this key", "base.cfg", 3));
            builder.add(&format!("some.long.name.{i}"), shared.chain([("image", own.as_str(), "x.cfg", 1)])).unwrap();
        }
        assert!(matches!(builder.add("x", []), Err(MatrixError::TooLarge { what: "variants", .. })));
        let packed = builder.pack().unwrap();
        assert!(packed.bytes().len() < 4 << 20, "{packed:?}");
        let matrix = packed.open().unwrap();
        assert_eq!(matrix.value(9999, "image"), Some("image_9999"));
    }

    #[test]
    fn what_announces_more_than_is_allowed_is_refused_before_memory_is_taken() {
        let mut bomb = u32::MAX.to_le_bytes().to_vec();
        bomb.extend([0; 64]);
        assert!(matches!(Packed(bomb).open(), Err(MatrixError::TooLarge { what: "bytes of a matrix", .. })));
        // A real bomb: 200 MiB of zeros in less than one.
        let zeros = lz4_flex::block::compress_prepend_size(&vec![0; 200 << 20]);
        assert!(zeros.len() < 1 << 20);
        assert!(matches!(Packed(zeros).open(), Err(MatrixError::TooLarge { .. })));
    }

    #[test]
    fn numbers_that_lead_nowhere_are_refused() {
        let assignment = Assignment { key: 0, value: 0, file: 0, line: 1 };
        let texts = vec!["a".to_owned()];
        for (matrix, number) in [
            (Matrix { variants: vec![Row { name: 0, assignments: vec![] }], ..Matrix::default() }, 0),
            (
                Matrix {
                    texts: texts.clone(),
                    assignments: vec![Assignment { value: 5, ..assignment }],
                    variants: vec![],
                },
                5,
            ),
            (
                Matrix {
                    texts,
                    assignments: vec![assignment],
                    variants: vec![Row { name: 0, assignments: vec![0, 1] }],
                },
                1,
            ),
        ] {
            let builder = MatrixBuilder { matrix, ..MatrixBuilder::default() };
            assert_eq!(builder.pack().unwrap().open(), Err(MatrixError::Dangling(number)));
        }
    }

    proptest! {
        #[test]
        fn damaged_bytes_are_refused_or_read_and_never_panic(at in 0_usize..80, bit in 0_u8..8, cut in 0_usize..80) {
            let mut bytes = packed(&[("a.b", &[("key", "value"), ("other", "value")]), ("c", &[("key", "v")])]).0;
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << bit;
            }
            bytes.truncate(bytes.len() - cut % bytes.len());
            if let Ok(matrix) = Packed(bytes).open() {
                for variant in 0..matrix.len() as u32 {
                    let _ = (matrix.name(variant), matrix.params(variant));
                }
            }
        }
    }
}
