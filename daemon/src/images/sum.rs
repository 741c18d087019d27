//! Digests that others state for a file: MD5, SHA-1 and SHA-256, as old configurations and download pages do. They tell
//! a broken download; what this cluster trusts is its own BLAKE3.

use std::{fs::File, io::Read, path::Path};

use md5::{Digest as _, Md5};
use ring::digest;
use vt_protocol::error::{ErrorCode, Report};

use super::store::trouble;

/// A digest that a file must have, while the file is read.
pub(crate) struct Sum {
    context: Context,
    wanted: String,
    kind: String,
}

enum Context {
    Md5(Md5),
    Sha(digest::Context),
}

impl Sum {
    /// For a kind and hexadecimal digits.
    ///
    /// # Errors
    /// There is no such kind, or these are no digits of it.
    pub(crate) fn new((kind, wanted): (String, String)) -> Result<Self, Report> {
        let (context, bytes) = match kind.as_str() {
            "md5" => (Context::Md5(Md5::new()), 16),
            "sha1" => (Context::Sha(digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY)), 20),
            "sha256" => (Context::Sha(digest::Context::new(&digest::SHA256)), 32),
            _ => {
                let title = format!("{kind} digests are not known: md5, sha1 and sha256 are");
                return Err(Report::new(ErrorCode::Usage, title));
            }
        };
        let wanted = wanted.to_lowercase();
        if wanted.len() != 2 * bytes || !wanted.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let title = format!("{wanted:?} is no {kind} digest: that has {} hexadecimal digits", 2 * bytes);
            return Err(Report::new(ErrorCode::Usage, title));
        }
        Ok(Self { context, wanted, kind })
    }

    /// Takes the next bytes of the file.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match &mut self.context {
            Context::Md5(context) => context.update(bytes),
            Context::Sha(context) => context.update(bytes),
        }
    }

    /// Whether a file, or as much of its beginning, has it. Blocks on the disk.
    ///
    /// # Errors
    /// It cannot be read, or is another one.
    pub(crate) fn of_file(mut self, path: &Path, most: Option<u64>) -> Result<(), Report> {
        let read = File::open(path).and_then(|file| {
            let (mut file, mut buffer) = (file.take(most.unwrap_or(u64::MAX)), vec![0; 1 << 20]);
            loop {
                match file.read(&mut buffer)? {
                    0 => return Ok(()),
                    count => self.update(&buffer[..count]),
                }
            }
        });
        read.map_err(|error| trouble("it cannot be read", path, &error))?;
        self.check()
    }

    /// Whether it was that file.
    ///
    /// # Errors
    /// It was another one.
    pub(crate) fn check(self) -> Result<(), Report> {
        let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
        let found = match self.context {
            Context::Md5(context) => hex(&context.finalize()),
            Context::Sha(context) => hex(context.finish().as_ref()),
        };
        if found == self.wanted {
            return Ok(());
        }
        Err(Report::new(ErrorCode::ImageDamaged, format!("its {} digest is another one", self.kind))
            .with("wanted", self.wanted)
            .with("found", found))
    }
}

/// The digest of a file in a list such as `sha1sum` writes: the only one there is, or the one in the file's line.
pub(crate) fn listed(list: &str, file: &str) -> Option<String> {
    let digits = |word: &str| word.len() >= 32 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let line = |line: &str| {
        let (digest, rest) = line.trim().split_once(char::is_whitespace).unwrap_or_else(|| (line.trim(), ""));
        digits(digest).then(|| (digest.to_owned(), rest.trim().trim_start_matches('*').to_owned()))
    };
    let lines: Vec<(String, String)> = list.lines().filter_map(line).collect();
    let named = lines.iter().find(|(_, name)| name.rsplit('/').next() == Some(file));
    let only = || lines.first().filter(|(_, name)| lines.len() == 1 && name.is_empty());
    named.or_else(only).map(|(digest, _)| digest.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_that_of_the_bytes_and_of_no_others() {
        let abc = [
            ("md5", "900150983CD24FB0D6963F7D28E17F72"),
            ("sha1", "a9993e364706816aba3e25717850c26c9cd0d89d"),
            ("sha256", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        ];
        for (kind, digest) in abc {
            let sum = || Sum::new((kind.to_owned(), digest.to_owned())).unwrap();
            let mut of_abc = sum();
            of_abc.update(b"a");
            of_abc.update(b"bc");
            of_abc.check().unwrap();
            let other = sum().check().unwrap_err();
            assert_eq!(other.code, ErrorCode::ImageDamaged, "{kind}");
            assert!(Sum::new((kind.to_owned(), digest[1..].to_owned())).is_err());
        }
        assert!(Sum::new(("crc32".to_owned(), "00000000".to_owned())).is_err());
    }

    #[test]
    fn a_list_names_its_files() {
        let (one, two) = ("1".repeat(40), "2".repeat(40));
        let list = format!("# digests\n{one}  other.qcow2\n{two} *./jeos.qcow2.xz\n");
        assert_eq!(listed(&list, "jeos.qcow2.xz"), Some(two));
        assert_eq!(listed(&list, "absent"), None);
        assert_eq!(listed(&format!("{one}\n"), "anything"), Some(one));
        assert_eq!(listed("<html>404</html>", "anything"), None);
    }
}
