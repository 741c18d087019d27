//! How a host joins a cluster: [`joiner`] is the side that wants in, [`member`] the side that lets it in, [`claim`] what
//! a host that belongs to a cluster keeps on disk about that.
//!
//! Before the one entry that admits it, nothing has changed anywhere; after it, the same key with the same token
//! resumes. A join that failed for good leaves no trace on either side.

pub mod claim;
mod echo;
pub mod joiner;
pub mod member;
