//! One variant by name, without expanding the others.

use crate::config::Config;
use crate::diag::Diagnostic;
use crate::expand::variant::Variant;
use crate::expand::{Found, build_at, walk_to};
use crate::inspect::locate::{Complete, paths};
use crate::model::Model;

/// Variants walked to find a name that is no path.
const MAX_WALK: usize = 1_000_000;

impl Config {
    /// The first variant with this full name. Defaults mode is not considered.
    ///
    /// # Errors
    /// What expanding it reports.
    pub fn find(&self, name: &str) -> Result<Option<Variant<'_>>, Diagnostic> {
        match self.named(name)? {
            None => Ok(None),
            Some(Found::Joined(variant, _)) => Ok(Some(*variant)),
            Some(Found::Path(nodes)) => {
                build_at(self, &Complete::new(&self.m, nodes.into()).subject(&self.m)).map(Some)
            }
        }
    }

    /// Where the variant of that name is.
    pub(crate) fn named(&self, name: &str) -> Result<Option<Found<'_>>, Diagnostic> {
        let m = &self.m;
        if !self.p.bounds_reserved {
            let complete = paths(m, name).into_iter().map(|p| Complete::new(m, p));
            let survivor = complete.into_iter().find(|c| !joined(m, c) && c.failed(m).next().is_none());
            if let Some(c) = survivor {
                return Ok(Some(Found::Path(c.nodes.into())));
            }
        }
        // The name of a joined variant is no single path, and a bound may give any name.
        if m.joins.is_empty() && !self.p.bounds_reserved { Ok(None) } else { walk_to(self, name, MAX_WALK) }
    }
}

fn joined(m: &Model, c: &Complete) -> bool {
    c.nodes.iter().any(|n| m.nodes[*n as usize].joins.len() > 0)
}
