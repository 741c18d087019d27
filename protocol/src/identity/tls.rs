//! TLS settings: 1.3 only, ring named explicitly, no early data, no resumption.
//!
//! The process-wide default provider is never used: it is ambiguous as soon as a dependency links a second one. A
//! resumed session would not run the verifiers again, so an expired or removed identity could live on in it.

use std::sync::{Arc, OnceLock};

use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::server::NoServerSessionStorage;
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::CertificateDer;

use super::trust::Trust;
use super::verify::{ClientOfCluster, HostOfCluster, PinnedCa, PinnedKey};
use super::{Identity, IdentityError, PrivateKey, PublicKey};
use crate::ids::ClusterId;
use crate::service::Service;
use crate::token::CaDigest;

/// The crypto provider of everything here.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())))
}

/// A client that shows `identity` and accepts hosts of its cluster.
pub fn client(identity: &Identity, service: Service) -> Result<ClientConfig, IdentityError> {
    shown(HostOfCluster::new(Arc::clone(identity.trust()), &provider()), identity, service)
}

/// A client that shows `identity` and accepts only the holder of `key`: the probe back to a joiner.
pub fn client_of_key(identity: &Identity, key: PublicKey, service: Service) -> Result<ClientConfig, IdentityError> {
    shown(PinnedKey::new(key, &provider()), identity, service)
}

/// A client without a certificate that pins a CA by digest: a joiner. The verifier tells what it saw.
pub fn client_pinning(ca: CaDigest, service: Service) -> Result<(ClientConfig, Arc<PinnedCa>), IdentityError> {
    let verifier = PinnedCa::new(ca, &provider());
    let pinned = Arc::clone(&verifier) as Arc<dyn ServerCertVerifier>;
    let mut config = dangerous(pinned)?.with_no_client_auth();
    finish_client(&mut config, service);
    Ok((config, verifier))
}

/// A client without a certificate that accepts hosts of a known CA. Only `join` is open to it.
pub fn client_without_certificate(ca: &CertificateDer<'_>, service: Service) -> Result<ClientConfig, IdentityError> {
    let mut config = dangerous(HostOfCluster::new(Trust::of(ca)?, &provider()))?.with_no_client_auth();
    finish_client(&mut config, service);
    Ok(config)
}

/// A host's server for `services`. Clients without a certificate pass TLS when `anonymous` is set; what is then open to
/// them is the router's decision.
pub fn server(identity: &Identity, services: &[Service], anonymous: bool) -> Result<ServerConfig, IdentityError> {
    let cluster = identity.facts().subject.cluster();
    let verifier = ClientOfCluster::new(cluster, Arc::clone(identity.trust()), !anonymous, &provider());
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain(), identity.key().for_tls())?;
    Ok(finish_server(config, services))
}

/// The server of a host that is not admitted yet: it shows a self-signed certificate of its new key and talks only to
/// clients that the pinned CA signed.
pub fn server_of_joiner(
    key: &PrivateKey,
    cluster: ClusterId,
    ca: &CertificateDer<'_>,
) -> Result<ServerConfig, IdentityError> {
    let verifier = ClientOfCluster::new(cluster, Trust::of(ca)?, true, &provider());
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![key.self_signed(cluster)?], key.for_tls())?;
    Ok(finish_server(config, &[Service::Join]))
}

type WithVerifier = rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>;

fn dangerous(verifier: Arc<dyn ServerCertVerifier>) -> Result<WithVerifier, IdentityError> {
    Ok(ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier))
}

fn shown(
    verifier: Arc<dyn ServerCertVerifier>,
    identity: &Identity,
    service: Service,
) -> Result<ClientConfig, IdentityError> {
    let mut config = dangerous(verifier)?.with_client_auth_cert(identity.chain(), identity.key().for_tls())?;
    finish_client(&mut config, service);
    Ok(config)
}

fn finish_client(config: &mut ClientConfig, service: Service) {
    config.alpn_protocols = vec![service.alpn().to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
}

fn finish_server(mut config: ServerConfig, services: &[Service]) -> ServerConfig {
    config.alpn_protocols = services.iter().map(|service| service.alpn().to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config
}
