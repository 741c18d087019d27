//! Ids: one type per thing, so that a job cannot be passed where a host is wanted.
//!
//! Text forms are what users see and type: `job_7f3k2a`, `case_7f3k2a.14`, `host1`. They parse back to the same value.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Crockford's base32 in lower case: no i, l, o, u, so that ids survive being read aloud.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// What was wrong with a text that should have been an id or a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {want}")]
pub struct IdError {
    /// The text as given, cut to 80 characters.
    pub text: String,
    /// What it should have been, with its article.
    pub want: &'static str,
}

impl IdError {
    fn new(text: &str, want: &'static str) -> Self {
        Self { text: text.chars().take(80).collect(), want }
    }
}

fn to_base32(mut value: u64) -> String {
    let mut digits = Vec::new();
    loop {
        digits.push(ALPHABET[(value & 31) as usize]);
        value >>= 5;
        if value == 0 {
            break;
        }
    }
    digits.reverse();
    digits.into_iter().map(char::from).collect()
}

fn from_base32(text: &str) -> Option<u64> {
    if text.is_empty() || text.len() > 13 {
        return None;
    }
    let mut value: u64 = 0;
    for c in text.bytes() {
        let digit = ALPHABET.iter().position(|a| *a == c.to_ascii_lowercase())? as u64;
        value = value.checked_mul(32)?.checked_add(digit)?;
    }
    Some(value)
}

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $want:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[derive(Default)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), to_base32(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            /// Accepts the text form with or without its prefix.
            fn from_str(text: &str) -> Result<Self, IdError> {
                from_base32(text.strip_prefix($prefix).unwrap_or(text)).map(Self).ok_or_else(|| IdError::new(text, $want))
            }
        }
    };
}

number_id!(
    /// A cluster: random, made by `cluster init`.
    ClusterId, "cl_", "a cluster id");
number_id!(
    /// A host's Raft id: random, never zero, never used again after its data directory is lost.
    HostId, "hst_", "a host id");
number_id!(
    /// A join token's public half.
    TokenId, "tk_", "a token id");
number_id!(
    /// A job: 30 random bits chosen by the client; the state machine refuses one that exists.
    JobId, "job_", "a job id");

impl HostId {
    /// The id as openraft wants it.
    pub fn raft(self) -> u64 {
        self.0
    }
}

/// Identifies one mutation. Applying it twice is applying it once; the same id with other content is a conflict.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u128);

impl RequestId {
    /// A fresh random id.
    pub fn random() -> Self {
        Self(u128::from(crate::chance::number()) << 64 | u128::from(crate::chance::number()))
    }

    /// An id derived from content: the same call repeated after a lost answer carries the same id.
    pub fn derived(parts: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(u128::from_le_bytes(bytes))
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "req_{:032x}", self.0)
    }
}

/// A fencing number: the log index at which something began. Larger is later; zero is never used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One scenario × one variant inside a job. Indexes count from 1 in the order of the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CaseId {
    /// The job it belongs to.
    pub job: JobId,
    /// Position in the plan, from 1.
    pub index: u32,
}

impl fmt::Display for CaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "case_{}.{}", to_base32(self.job.0), self.index)
    }
}

/// One execution of a case. Numbers count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttemptId {
    /// The case that is executed.
    pub case: CaseId,
    /// Which execution of it, from 1.
    pub number: u32,
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", to_base32(self.case.job.0), self.case.index, self.number)
    }
}

impl FromStr for AttemptId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let wrong = || IdError::new(text, "an attempt id (job.case.number)");
        let mut parts = text.split('.');
        let (Some(job), Some(index), Some(number), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        Ok(Self {
            case: CaseId { job: job.parse().map_err(|_| wrong())?, index: index.parse().map_err(|_| wrong())? },
            number: number.parse().map_err(|_| wrong())?,
        })
    }
}

/// One VM of one attempt.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VmId {
    /// The attempt that made it.
    pub attempt: AttemptId,
    /// Its name within the attempt, e.g. `vm1`.
    pub name: Name,
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.attempt, self.name)
    }
}

/// One movement of one VM. Numbers count the collective calls for this VM, from 1.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MigrationId {
    /// The VM that moves.
    pub vm: VmId,
    /// Which movement of it, from 1.
    pub number: u32,
}

impl fmt::Display for MigrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mig_{}.{}", self.vm, self.number)
    }
}

/// The name of a host, VM, lab or image: 1 to 63 of `a-z 0-9 - _ .`, beginning with a letter or digit.
///
/// It is used in file and interface names, so it cannot hold a separator or lead out of a directory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
        let first = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if text.len() <= 63 && text.chars().next().is_some_and(first) && text.chars().all(inner) {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdError::new(text, "a name (1 to 63 of a-z 0-9 - _ . beginning with a letter or digit)"))
        }
    }
}

impl TryFrom<String> for Name {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A BLAKE3 digest of content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..6].iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl FromStr for Digest {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let wrong = || IdError::new(text, "a BLAKE3 digest (64 hex digits)");
        if text.len() != 64 || !text.is_ascii() {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms_parse_back_to_the_same_id() {
        for value in [0, 1, 31, 32, 0x3fff_ffff, u64::MAX] {
            assert_eq!(JobId(value).to_string().parse::<JobId>().unwrap(), JobId(value));
        }
        let attempt = AttemptId { case: CaseId { job: JobId(123_456), index: 14 }, number: 2 };
        assert_eq!(attempt.to_string().parse::<AttemptId>().unwrap(), attempt);
        let digest = Digest::of(b"x");
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
    }

    #[test]
    fn a_text_that_is_no_id_is_refused_with_what_was_wanted() {
        for text in ["", "job_", "job_!", "job_zzzzzzzzzzzzzz", "job_7f3k2\u{e9}"] {
            let error = text.parse::<JobId>().unwrap_err();
            assert!(error.to_string().contains("not a job id"), "{error}");
        }
        for text in ["1.2", "a.b.c", "1.2.3.4", "1.-2.3"] {
            assert!(text.parse::<AttemptId>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_name_cannot_lead_out_of_a_directory() {
        for text in ["", "..", ".x", "a/b", "-a", "A", "a b", &"a".repeat(64)] {
            assert!(text.parse::<Name>().is_err(), "{text}");
        }
        for text in ["host1", "a", "lab-a.b_c"] {
            assert_eq!(text.parse::<Name>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn a_derived_request_id_depends_on_where_the_parts_are_cut() {
        assert_ne!(RequestId::derived(&[b"ab", b"c"]), RequestId::derived(&[b"a", b"bc"]));
    }
}
