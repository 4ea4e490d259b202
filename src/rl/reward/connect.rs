//! One POST to one address: a fresh connection to the address that was judged (never to what a name resolves to by
//! then), TLS for the URL's name, no redirects, no proxies, a bounded answer. Time is bounded by the caller.

use std::net::SocketAddr;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use hyper::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::HookError;
use crate::net::{self, Address};

/// What a hook's URL names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Whether to speak TLS.
    pub tls: bool,
    /// Name or address, as in the URL.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path and query.
    pub path: String,
}

impl Target {
    /// Reads a URL.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(url: &str) -> Result<Self, String> {
        let Address { tls, host, port, path, login } = Address::parse(url)?;
        if login {
            return Err("must not contain a user or password; use secret_env".to_owned());
        }
        Ok(Self { tls, host, port, path })
    }

    /// `host:port`.
    #[must_use]
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The header `Retry-After`, as sent.
    pub retry_after: Option<String>,
    /// The body; empty unless the status is 200.
    pub body: Vec<u8>,
}

/// Posts `body` as JSON to `address`.
///
/// # Errors
/// `Connection`, or `TooLarge` for an answer of more than `limit` bytes.
pub async fn post(
    target: &Target,
    address: SocketAddr,
    headers: &[(&'static str, String)],
    body: Bytes,
    limit: usize,
) -> Result<Answer, HookError> {
    let mut request = Request::post(&target.path)
        .header(HOST, target.authority())
        .header(CONTENT_TYPE, "application/json")
        .header(USER_AGENT, concat!("lacuna/", env!("CARGO_PKG_VERSION")));
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    let request = request.body(Full::new(body)).map_err(|_| broken("a header's value is not allowed"))?;
    let stream = TcpStream::connect(address).await.map_err(|e| broken(e.kind()))?;
    if !target.tls {
        return exchange(stream, request, limit).await;
    }
    let stream = net::secure(&target.host, stream).await.map_err(broken)?;
    exchange(stream, request, limit).await
}

fn broken(error: impl std::fmt::Display) -> HookError {
    HookError::Connection(error.to_string())
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>, limit: usize) -> Result<Answer, HookError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (response, _driver) = net::send(stream, request).await.map_err(broken)?;
    let status = response.status().as_u16();
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let body = if status == 200 { read(response, limit).await? } else { Vec::new() };
    Ok(Answer { status, retry_after, body })
}

/// The body, unless it is longer than `limit`: then nothing more of it is read.
async fn read(response: Response<Incoming>, limit: usize) -> Result<Vec<u8>, HookError> {
    let mut incoming = response.into_body();
    if incoming.size_hint().lower() > limit as u64 {
        return Err(HookError::TooLarge { limit });
    }
    let mut body = Vec::new();
    while let Some(frame) = incoming.frame().await {
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        if body.len() + data.len() > limit {
            return Err(HookError::TooLarge { limit });
        }
        body.extend_from_slice(&data);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_or_refused() {
        let target = Target::parse("https://judge.internal/score?v=1").unwrap();
        assert_eq!((target.tls, target.port, target.path.as_str()), (true, 443, "/score?v=1"));
        assert_eq!(Target::parse("http://[::1]:8000").unwrap().authority(), "[::1]:8000");
        assert_eq!(Target::parse("http://10.0.0.5:8000/x").unwrap().authority(), "10.0.0.5:8000");
        for bad in ["", "judge", "/score", "ftp://judge/", "file:///etc/passwd", "https://user:word@judge/", "https://"]
        {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
    }
}
