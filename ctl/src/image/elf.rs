//! Just enough of ELF: which libraries a program needs, what a kernel module depends on, and a copy without symbols.
//!
//! Files come from packages and from our own build; still every offset in them is checked.

/// Why a file could not be read as 64-bit little-endian ELF.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// Another format, or another word size.
    #[error("not a 64-bit little-endian ELF file")]
    Format,
    /// An offset or size points outside.
    #[error("an ELF header points outside the file")]
    Truncated,
}

const PT_LOAD: u32 = 1;
const DT_NEEDED: u64 = 1;
const SHT_NOBITS: u32 = 8;

fn bytes_at<const N: usize>(file: &[u8], at: usize) -> Result<[u8; N], ElfError> {
    let end = at.checked_add(N).ok_or(ElfError::Truncated)?;
    file.get(at..end).and_then(|bytes| bytes.try_into().ok()).ok_or(ElfError::Truncated)
}

fn u16_at(file: &[u8], at: usize) -> Result<usize, ElfError> {
    Ok(u16::from_le_bytes(bytes_at(file, at)?).into())
}

fn u32_at(file: &[u8], at: usize) -> Result<u32, ElfError> {
    Ok(u32::from_le_bytes(bytes_at(file, at)?))
}

fn u64_at(file: &[u8], at: usize) -> Result<usize, ElfError> {
    usize::try_from(u64::from_le_bytes(bytes_at(file, at)?)).map_err(|_| ElfError::Truncated)
}

fn check(file: &[u8]) -> Result<(), ElfError> {
    if file.starts_with(b"\x7fELF\x02\x01") { Ok(()) } else { Err(ElfError::Format) }
}

fn text_at(bytes: &[u8], at: usize) -> Result<String, ElfError> {
    let rest = bytes.get(at..).ok_or(ElfError::Truncated)?;
    let end = rest.iter().position(|byte| *byte == 0).ok_or(ElfError::Truncated)?;
    Ok(String::from_utf8_lossy(&rest[..end]).into_owned())
}

/// Offset of the header of section `index`.
fn header(file: &[u8], index: usize) -> Result<usize, ElfError> {
    let (table, size) = (u64_at(file, 40)?, u16_at(file, 58)?);
    index.checked_mul(size).and_then(|offset| table.checked_add(offset)).ok_or(ElfError::Truncated)
}

fn contents(file: &[u8], header: usize) -> Result<&[u8], ElfError> {
    if u32_at(file, header + 4)? == SHT_NOBITS {
        return Ok(&[]);
    }
    let (offset, size) = (u64_at(file, header + 24)?, u64_at(file, header + 32)?);
    let end = offset.checked_add(size).ok_or(ElfError::Truncated)?;
    file.get(offset..end).ok_or(ElfError::Truncated)
}

/// The bytes of the section called `name`.
fn section<'a>(file: &'a [u8], name: &str) -> Result<Option<&'a [u8]>, ElfError> {
    check(file)?;
    let names = contents(file, header(file, u16_at(file, 62)?)?)?;
    for index in 0..u16_at(file, 60)? {
        let header = header(file, index)?;
        if text_at(names, u32_at(file, header)? as usize)? == name {
            return contents(file, header).map(Some);
        }
    }
    Ok(None)
}

/// Names of the shared libraries a program or library asks for, in its order.
pub(super) fn needed(file: &[u8]) -> Result<Vec<String>, ElfError> {
    let (Some(dynamic), Some(strings)) = (section(file, ".dynamic")?, section(file, ".dynstr")?) else {
        return Ok(Vec::new());
    };
    let mut names = Vec::new();
    for entry in dynamic.chunks_exact(16) {
        if u64::from_le_bytes(bytes_at(entry, 0)?) == DT_NEEDED {
            names.push(text_at(strings, u64_at(entry, 8)?)?);
        }
    }
    Ok(names)
}

/// Names of the modules a kernel module depends on, by its own record.
pub(super) fn module_depends(file: &[u8]) -> Result<Vec<String>, ElfError> {
    let info = section(file, ".modinfo")?.unwrap_or_default();
    let line = info.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(b"depends="));
    let names = String::from_utf8_lossy(line.unwrap_or_default()).into_owned();
    Ok(names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

/// The program without what is not loaded: symbols, line tables, the section table.
pub(super) fn stripped(file: &[u8]) -> Result<Vec<u8>, ElfError> {
    check(file)?;
    let (table, size, count) = (u64_at(file, 32)?, u16_at(file, 54)?, u16_at(file, 56)?);
    let mut end = table.checked_add(size * count).ok_or(ElfError::Truncated)?;
    for index in 0..count {
        let at = table.checked_add(index * size).ok_or(ElfError::Truncated)?;
        if u32_at(file, at)? == PT_LOAD {
            let segment = u64_at(file, at + 8)?.checked_add(u64_at(file, at + 32)?);
            end = end.max(segment.ok_or(ElfError::Truncated)?);
        }
    }
    let mut kept = file.get(..end).ok_or(ElfError::Truncated)?.to_vec();
    kept[40..48].fill(0);
    kept[60..64].fill(0);
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Vec<u8> {
        std::fs::read(std::env::current_exe().unwrap()).unwrap()
    }

    #[test]
    fn a_real_program_tells_its_libraries_and_runs_stripped() {
        let file = own();
        assert!(needed(&file).unwrap().iter().any(|name| name.starts_with("libc.so")));
        let small = stripped(&file).unwrap();
        assert!(small.len() < file.len());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stripped");
        std::fs::write(&path, small).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let output = std::process::Command::new(&path).arg("--list").output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    #[test]
    fn cut_and_changed_files_are_errors_not_panics() {
        let file = own();
        assert_eq!(needed(b"#!/bin/sh\n"), Err(ElfError::Format));
        assert_eq!(stripped(b""), Err(ElfError::Format));
        for length in (0..200).chain([1000, 5000]) {
            let _ = needed(&file[..length]);
            let _ = stripped(&file[..length]);
            let _ = module_depends(&file[..length]);
        }
        for at in 6..64 {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = file[..64].to_vec();
                bad[at] = value;
                bad.extend_from_slice(&file[64..4096]);
                let _ = (needed(&bad), stripped(&bad), module_depends(&bad));
            }
        }
    }
}
