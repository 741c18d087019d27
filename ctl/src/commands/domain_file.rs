//! A domain of libvirt in a file of the user: `-p libvirt_domain_xml=FILE` becomes its text, which travels with the plan. It is
//! understood by a daemon.

use std::{fs::File, io::Read};

use vt_protocol::{
    error::{ErrorCode, Report},
    libvirt::{DOMAIN_MAX, DOMAIN_PARAM},
};

use crate::ui::report::usage;

/// Puts the texts of files in their names' places. What begins as XML does is a text already. A configuration's lines
/// cannot hold one, so with `-c` there is none.
pub(super) fn read_into(params: &mut [(String, String)], with_matrix: bool) -> Result<(), Report> {
    let is_one =
        |key: &str| key.strip_prefix(DOMAIN_PARAM).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'));
    for (key, value) in params.iter_mut().filter(|(key, value)| is_one(key) && !value.trim_start().starts_with('<')) {
        if with_matrix {
            return Err(usage(format!(
                "{key} is for a scenario that is named, and not for variants of a configuration"
            ))
            .help(format!("vtctl run SCENARIO -m … --backend libvirt -p {key}={value}")));
        }
        *value = read(value)?;
    }
    Ok(())
}

fn read(file: &str) -> Result<String, Report> {
    let bad = |why: String| {
        Report::new(ErrorCode::BadConfig, format!("the domain {file} cannot be read")).with("reason", why)
    };
    let mut bytes = Vec::new();
    let most = DOMAIN_MAX as u64;
    let read = File::open(file).and_then(|open| open.take(most + 1).read_to_end(&mut bytes));
    read.map_err(|error| bad(error.to_string()))?;
    if bytes.len() > DOMAIN_MAX {
        return Err(bad(format!("it has more than {} KiB", most >> 10)));
    }
    String::from_utf8(bytes).map_err(|_| bad("it is no text in UTF-8".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_become_texts_and_texts_stay() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("vm.xml").display().to_string();
        std::fs::write(&file, "<domain/>\n").unwrap();
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let given = |value: &str| {
            [pair(DOMAIN_PARAM, value), pair("libvirt_domain_xml_vm2", " <domain/>"), pair("mem", "/dev/null")]
        };
        let mut params = given(&file);
        read_into(&mut params, false).unwrap();
        let values = params.map(|(_, value)| value);
        assert_eq!(values, ["<domain/>\n", " <domain/>", "/dev/null"]);
        assert_eq!(read_into(&mut given(&file), true).unwrap_err().code, ErrorCode::Usage);
        for (content, why) in [(vec![0xff], "UTF-8"), (vec![b'x'; DOMAIN_MAX + 1], "64 KiB")] {
            std::fs::write(&file, content).unwrap();
            let report = read_into(&mut given(&file), false).unwrap_err();
            assert!(report.evidence.iter().any(|(_, said)| said.contains(why)), "{report:?}");
        }
        std::fs::remove_file(&file).unwrap();
        assert_eq!(read_into(&mut given(&file), false).unwrap_err().code, ErrorCode::BadConfig);
    }
}
