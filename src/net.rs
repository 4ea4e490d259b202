//! What every outgoing connection of the program shares: addresses taken apart, TLS with the certificates that this
//! machine trusts, one request over one connection.
//!
//! Lives here: mechanism. Does not: where to connect, what may be asked, how long to wait, redirects, bounds on answers.

use std::sync::{Arc, OnceLock};

use hyper::body::{Body, Incoming};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_util::task::AbortOnDropHandle;

/// A URL taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Whether to speak TLS.
    pub tls: bool,
    /// Name or address, as in the URL.
    pub host: String,
    /// Port, the scheme's own when the URL names none.
    pub port: u16,
    /// Path and query.
    pub path: String,
    /// The URL has a user or password.
    pub login: bool,
}

impl Address {
    /// Reads a URL.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(url: &str) -> Result<Self, &'static str> {
        let uri: Uri = url.parse().map_err(|_| "is not a URL")?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("must begin with https:// or http://"),
        };
        let authority = uri.authority().ok_or("names no host")?;
        Ok(Self {
            tls,
            host: authority.host().to_owned(),
            port: authority.port_u16().unwrap_or(default_port(tls)),
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
            login: authority.as_str().contains('@'),
        })
    }
}

/// The port of https or http.
#[must_use]
pub fn default_port(tls: bool) -> u16 {
    if tls { 443 } else { 80 }
}

/// An IPv6 address without its brackets.
#[must_use]
pub fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

/// Speaks TLS on `stream` with a server that must be `host`.
///
/// # Errors
/// What is wrong with the name, this machine or the server.
pub async fn secure<S>(host: &str, stream: S) -> Result<TlsStream<S>, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let name = ServerName::try_from(bare(host).to_owned()).map_err(|_| "the URL's host is no name for TLS")?;
    TlsConnector::from(trusted()?).connect(name, stream).await.map_err(|e| e.to_string())
}

/// The certificates that this machine trusts (`SSL_CERT_FILE` and `SSL_CERT_DIR` replace them), read once.
fn trusted() -> Result<Arc<ClientConfig>, &'static str> {
    static CONFIG: OnceLock<Option<Arc<ClientConfig>>> = OnceLock::new();
    let load = || {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
        (!roots.is_empty()).then(|| Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
    };
    let none = "no trusted certificates on this machine; install ca-certificates or set SSL_CERT_FILE";
    CONFIG.get_or_init(load).clone().ok_or(none)
}

/// An answer whose body is still to be read; the connection lives as long as the handle.
pub type Exchange = (Response<Incoming>, AbortOnDropHandle<()>);

/// Sends `request` on `stream`.
///
/// # Errors
/// When the connection breaks.
pub async fn send<S, B>(stream: S, request: Request<B>) -> hyper::Result<Exchange>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = AbortOnDropHandle::new(tokio::spawn(async move {
        // How the connection ends shows in the answer.
        let _ = connection.await;
    }));
    Ok((sender.send_request(request).await?, driver))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_certificates_make_a_tls_client() {
        match trusted() {
            Ok(_) => {}
            Err(error) => assert!(error.contains("ca-certificates")),
        }
    }
}
