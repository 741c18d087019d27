//! JSON text, written by hand because one string in a thousand needs an escape and millions are written.

/// A string; only what must be escaped is.
pub(crate) fn push(s: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    push_inside(s, out);
    out.push(b'"');
}

/// A string that is known to need no escapes.
pub(crate) fn push_clean(s: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(s.as_bytes());
    out.push(b'"');
}

/// A string without its quotes.
pub(crate) fn push_inside(s: &str, out: &mut Vec<u8>) {
    if is_clean(s) {
        out.extend_from_slice(s.as_bytes());
    } else {
        s.bytes().for_each(|b| push_byte(b, out));
    }
}

fn push_byte(b: u8, out: &mut Vec<u8>) {
    match b {
        b'"' => out.extend_from_slice(b"\\\""),
        b'\\' => out.extend_from_slice(b"\\\\"),
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\t' => out.extend_from_slice(b"\\t"),
        0..0x20 => {
            const HEX: &[u8; 16] = b"0123456789abcdef";
            out.extend_from_slice(b"\\u00");
            out.push(HEX[usize::from(b >> 4)]);
            out.push(HEX[usize::from(b & 15)]);
        }
        b => out.push(b),
    }
}

/// No character of the text needs an escape.
pub(crate) fn is_clean(s: &str) -> bool {
    // Without an early end inside a chunk, so that the compiler can compare many bytes at once.
    let bad = |b: u8| b < 0x20 || b == b'"' || b == b'\\';
    let mut chunks = s.as_bytes().chunks_exact(16);
    chunks.by_ref().all(|c| !c.iter().fold(false, |acc, b| acc | bad(*b)))
        && !chunks.remainder().iter().fold(false, |acc, b| acc | bad(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_strings_escape_what_they_must() {
        let mut out = Vec::new();
        push("a\"b\\c\u{1}\té", &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "\"a\\\"b\\\\c\\u0001\\té\"");
    }
}
