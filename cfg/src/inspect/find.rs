//! One variant by name, without expanding the others.

use crate::config::Config;
use crate::diag::Diagnostic;
use crate::expand::build_at;
use crate::expand::variant::Variant;
use crate::inspect::explain::{MAX_WALK, joined};
use crate::inspect::locate::{Complete, paths};

impl Config {
    /// The first variant with this full name. Defaults mode is not considered.
    ///
    /// # Errors
    /// What expanding it reports.
    pub fn find(&self, name: &str) -> Result<Option<Variant<'_>>, Diagnostic> {
        let m = &self.m;
        for path in paths(m, name) {
            let c = Complete::new(m, path);
            if !joined(m, &c) && c.failed(m).next().is_none() {
                return build_at(self, &c.nodes, c.view(m), name, &c.short_name(m), &c.dep(m)).map(Some);
            }
        }
        if m.joins.is_empty() {
            return Ok(None);
        }
        // A joined name is no single path: walk.
        let mut all = self.variants().take(MAX_WALK);
        all.find(|v| v.as_ref().map_or(true, |v| v.name() == name)).transpose()
    }
}
