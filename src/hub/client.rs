//! GET over HTTP or HTTPS, redirects followed; the token goes to the endpoint's origin and nowhere else.

use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, HOST, HeaderValue, LOCATION, RANGE, USER_AGENT};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use super::{HubError, Options};
use crate::net::{self, Address, Exchange};

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
        let Address { tls, host, port, path, .. } = Address::parse(text).map_err(|problem| broken(text, problem))?;
        Ok(Self { origin: Origin { tls, host, port }, path })
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
        if *port == net::default_port(*tls) { host.clone() } else { format!("{host}:{port}") }
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
    let request = request.body(Empty::<Bytes>::new()).map_err(|_| broken(&shown, "that is no URL"))?;
    let stream = within(options.idle, &shown, connect(options, &url.origin)).await?.map_err(|e| broken(&shown, e))?;
    let sent = |e: hyper::Error| broken(&shown, e);
    if !url.origin.tls {
        return within(options.idle, &shown, net::send(stream, request)).await?.map_err(sent);
    }
    let secure = net::secure(&url.origin.host, stream);
    let stream = within(options.idle, &shown, secure).await?.map_err(|e| broken(&shown, e))?;
    within(options.idle, &shown, net::send(stream, request)).await?.map_err(sent)
}

async fn connect(options: &Options, origin: &Origin) -> std::io::Result<TcpStream> {
    let host = net::bare(&origin.host);
    match options.proxy.as_ref().filter(|proxy| origin.tls && proxy.serves(host)) {
        Some(proxy) => proxy.tunnel(&origin.host, origin.port).await,
        None => TcpStream::connect((host, origin.port)).await,
    }
}

async fn within<T>(limit: Duration, url: &str, work: impl Future<Output = T>) -> Result<T, HubError> {
    tokio::time::timeout(limit, work).await.map_err(|_| broken(url, format!("silent for {} s", limit.as_secs())))
}

fn broken(url: &str, problem: impl std::fmt::Display) -> HubError {
    let url = url.split('?').next().unwrap_or_default().to_owned();
    HubError::Connection { url, problem: problem.to_string() }
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
