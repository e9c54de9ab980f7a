//! The two ends of TLS for the examples, with a certificate for `localhost` and 127.0.0.1 that
//! signs itself.
//!
//! The private key is public, here for all to read: never use it for anything but these examples.

#![allow(dead_code)] // an example is a server or a client, seldom both

use async_native_tls::{Certificate, Identity, Result, TlsAcceptor, TlsConnector};

const CERTIFICATE: &[u8] = include_bytes!("certificate.pem");
const PRIVATE_KEY: &[u8] = include_bytes!("private-key.pem");

/// The server's end: shows the certificate and proves with the key that it is its own.
pub(crate) fn acceptor() -> Result<TlsAcceptor> {
    let identity = Identity::from_pkcs8(CERTIFICATE, PRIVATE_KEY)?;
    Ok(native_tls::TlsAcceptor::new(identity)?.into())
}

/// The client's end: trusts that certificate besides those that the system trusts. Nothing is
/// switched off.
pub(crate) fn connector() -> Result<TlsConnector> {
    Ok(TlsConnector::new().add_root_certificate(Certificate::from_pem(CERTIFICATE)?))
}
