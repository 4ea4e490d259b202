//! GET over HTTP or HTTPS, redirects followed; the token goes to the endpoint's origin and nowhere else.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, HOST, HeaderValue, LOCATION, RANGE, USER_AGENT};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_util::task::AbortOnDropHandle;

use super::{HubError, Options};

/// A download is redirected once or twice.
const MAX_REDIRECTS: usize = 5;

/// Scheme, host and port: what a token is for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    tls: bool,
    host: String,
    port: u16,
}

/// An address taken apart.
#[derive(Debug, Clone)]
struct Url {
    origin: Origin,
    /// Path and query.
    path: String,
}

impl Url {
    fn parse(text: &str) -> Result<Self, HubError> {
        let refused = |problem: &str| broken(text, problem);
        let uri: Uri = text.parse().map_err(|_| refused("that is no URL"))?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(refused("a URL begins with https:// or http://")),
        };
        let authority = uri.authority().ok_or_else(|| refused("it names no host"))?;
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Self { origin: Origin { tls, host: authority.host().to_owned(), port }, path })
    }

    /// Where a `Location` leads from here.
    fn follow(&self, location: &str) -> Result<Self, HubError> {
        if location.starts_with('/') && !location.starts_with("//") {
            return Ok(Self { origin: self.origin.clone(), path: location.to_owned() });
        }
        let next = Self::parse(location)?;
        match self.origin.tls && !next.origin.tls {
            true => Err(broken(location, "a redirect from https to http is not followed")),
            false => Ok(next),
        }
    }

    /// Host and, unless it is the scheme's own, port: signatures of a CDN are over this.
    fn authority(&self) -> String {
        let Origin { tls, host, port } = &self.origin;
        if *port == if *tls { 443 } else { 80 } { host.clone() } else { format!("{host}:{port}") }
    }

    /// For messages: a query may carry a signature.
    fn shown(&self) -> String {
        let scheme = if self.origin.tls { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority(), self.path.split('?').next().unwrap_or_default())
    }
}

/// A GET's answer, being read.
pub(super) struct Answer {
    /// HTTP status.
    pub status: u16,
    body: Incoming,
    url: String,
    idle: Duration,
    _driver: AbortOnDropHandle<()>,
}

impl Answer {
    /// More of the body; `None` at its end.
    ///
    /// # Errors
    /// `Connection` when it breaks off or is silent for too long.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, HubError> {
        loop {
            match within(self.idle, &self.url, self.body.frame()).await? {
                None => return Ok(None),
                Some(Err(error)) => return Err(broken(&self.url, error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// The whole body, if it has at most `limit` bytes.
    pub(super) async fn whole(mut self, limit: usize) -> Result<Vec<u8>, HubError> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if body.len() + chunk.len() > limit {
                let problem = format!("an answer of more than {limit} bytes");
                return Err(HubError::Malformed { url: self.url, problem });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// The address that answered, without its query.
    pub(super) fn url(&self) -> &str {
        &self.url
    }
}

/// Gets `path` of the endpoint, from byte `from` on; follows redirects.
///
/// # Errors
/// `Connection`; statuses are the caller's.
pub(super) async fn get(options: &Options, path: &str, from: u64) -> Result<Answer, HubError> {
    let home = Url::parse(&format!("{}{path}", options.endpoint))?;
    let mut url = home.clone();
    for _ in 0..=MAX_REDIRECTS {
        let trusted = url.origin == home.origin;
        let (response, driver) = once(options, &url, from, trusted).await?;
        if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
            let status = response.status().as_u16();
            let body = response.into_body();
            return Ok(Answer { status, body, url: url.shown(), idle: options.idle, _driver: driver });
        }
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        url = url.follow(location.ok_or_else(|| broken(&url.shown(), "a redirect to nowhere"))?)?;
    }
    Err(broken(&home.shown(), "too many redirects"))
}

type Exchange = (Response<Incoming>, AbortOnDropHandle<()>);

async fn once(options: &Options, url: &Url, from: u64, trusted: bool) -> Result<Exchange, HubError> {
    let shown = url.shown();
    let mut request = Request::get(&url.path)
        .header(HOST, url.authority())
        .header(USER_AGENT, concat!("lacuna/", env!("CARGO_PKG_VERSION")));
    if from > 0 {
        request = request.header(RANGE, format!("bytes={from}-"));
    }
    if let Some(token) = options.token.as_ref().filter(|_| trusted) {
        let value = HeaderValue::from_str(&format!("Bearer {}", token.0));
        let mut value = value.map_err(|_| broken(&shown, "HF_TOKEN holds characters that no token has"))?;
        value.set_sensitive(true);
        request = request.header(AUTHORIZATION, value);
    }
    let request = request.body(Empty::new()).map_err(|_| broken(&shown, "that is no URL"))?;
    let stream = within(options.idle, &shown, connect(options, &url.origin)).await?.map_err(|e| broken(&shown, e))?;
    if !url.origin.tls {
        return within(options.idle, &shown, exchange(stream, request, &shown)).await?;
    }
    let name = ServerName::try_from(bare(&url.origin.host).to_owned());
    let name = name.map_err(|_| broken(&shown, "its host is no name for TLS"))?;
    let handshake = TlsConnector::from(tls(&shown)?).connect(name, stream);
    let stream = within(options.idle, &shown, handshake).await?.map_err(|e| broken(&shown, e))?;
    within(options.idle, &shown, exchange(stream, request, &shown)).await?
}

async fn connect(options: &Options, origin: &Origin) -> std::io::Result<TcpStream> {
    let host = bare(&origin.host);
    match options.proxy.as_ref().filter(|proxy| origin.tls && proxy.serves(host)) {
        Some(proxy) => proxy.tunnel(&origin.host, origin.port).await,
        None => TcpStream::connect((host, origin.port)).await,
    }
}

async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>, shown: &str) -> Result<Exchange, HubError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|e| broken(shown, e))?;
    let driver = AbortOnDropHandle::new(tokio::spawn(async move {
        // How the connection ends shows in the answer.
        let _ = connection.await;
    }));
    let response = sender.send_request(request).await.map_err(|e| broken(shown, e))?;
    Ok((response, driver))
}

async fn within<T>(limit: Duration, url: &str, work: impl Future<Output = T>) -> Result<T, HubError> {
    tokio::time::timeout(limit, work).await.map_err(|_| broken(url, format!("silent for {} s", limit.as_secs())))
}

/// An IPv6 address without its brackets.
fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

fn broken(url: &str, problem: impl std::fmt::Display) -> HubError {
    let url = url.split('?').next().unwrap_or_default().to_owned();
    HubError::Connection { url, problem: problem.to_string() }
}

/// The certificates that this machine trusts (`SSL_CERT_FILE` and `SSL_CERT_DIR` replace them), read once.
fn tls(shown: &str) -> Result<Arc<ClientConfig>, HubError> {
    static CONFIG: OnceLock<Option<Arc<ClientConfig>>> = OnceLock::new();
    let load = || {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
        (!roots.is_empty()).then(|| Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
    };
    let none =
        || broken(shown, "no trusted certificates on this machine; install ca-certificates or set SSL_CERT_FILE");
    CONFIG.get_or_init(load).clone().ok_or_else(none)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_they_say_but_not_out_of_tls() {
        let home = Url::parse("https://hub.example/a/b?x=1").unwrap();
        assert_eq!(home.shown(), "https://hub.example/a/b");
        let near = home.follow("/c?d").unwrap();
        assert_eq!((near.origin == home.origin, near.path.as_str()), (true, "/c?d"));
        let far = home.follow("https://cdn.example:8443/e").unwrap();
        assert!(far.origin != home.origin && far.origin.port == 8443);
        let refused = home.follow("http://hub.example/a?secret").err().unwrap().to_string();
        assert!(refused.contains("not followed") && !refused.contains("secret"), "{refused}");
        for bad in ["file:///etc/passwd", "//cdn.example/x", "c/d"] {
            assert!(home.follow(bad).is_err(), "{bad}");
        }
    }
}
