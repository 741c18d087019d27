//! Who is who: keys, certificates and the TLS settings made from them.
//!
//! One private CA per cluster. A host is the public key admitted in committed membership: its certificate is a carrier
//! of that key, and its dates are ignored, because machines stay off for months. A vtctl certificate carries a role and
//! its dates bind. TLS 1.3 only, ring as provider, no early data, no resumption (a resumed session would skip the
//! checks). Who is admitted is not decided here.

pub mod authority;
pub mod keys;
pub mod store;
pub mod subject;
pub mod tls;
pub mod trust;
pub mod verify;

pub use authority::{ClusterCa, Validity};
pub use keys::{Identity, PrivateKey, PublicKey};
pub use subject::Subject;
pub use trust::Trust;

/// Why a key, certificate or TLS setting could not be made or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A key or certificate could not be made.
    #[error("a key or certificate could not be made")]
    Make(#[from] rcgen::Error),
    /// TLS refused a key, certificate or setting.
    #[error("TLS refused a key or certificate")]
    Tls(#[from] rustls::Error),
    /// A certificate is not one of this mesh.
    #[error("the certificate is not one of this mesh: {0}")]
    Certificate(&'static str),
    /// A signing request is not acceptable.
    #[error("the signing request is not acceptable: {0}")]
    Request(&'static str),
    /// A name cannot stand in a certificate.
    #[error("{0:?} cannot stand in a certificate")]
    Name(String),
    /// A file of the identity could not be read or written.
    #[error("{path}: {what}")]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file of the identity does not hold what it should.
    #[error("{path} holds no {want} in PEM")]
    Pem {
        /// The file.
        path: std::path::PathBuf,
        /// What it should hold.
        want: &'static str,
    },
}
