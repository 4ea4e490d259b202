//! The proxy of the environment (`HTTPS_PROXY`, else `ALL_PROXY`; `NO_PROXY`): a tunnel to a host, for HTTPS.

use std::io::{Error, Result};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Uri;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Longest answer to a request for a tunnel.
const MAX_ANSWER: usize = 8192;

/// A proxy that speaks HTTP.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    host: String,
    port: u16,
    /// `user:password`.
    credentials: Option<String>,
    /// Hosts that are reached without it, with all below them; `*` is every host.
    bypass: Vec<String>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Proxy({}:{})", self.host, self.port)
    }
}

impl Proxy {
    /// The one that the variables name, in capitals or not; none if they name none that speaks HTTP.
    pub(super) fn from_vars(var: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let either = |name: &str| var(name).or_else(|| var(&name.to_lowercase()));
        let text = either("HTTPS_PROXY").or_else(|| either("ALL_PROXY"))?;
        let text = if text.contains("://") { text } else { format!("http://{text}") };
        let uri: Uri = text.parse().ok()?;
        let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http"))?;
        let credentials = authority.as_str().rsplit_once('@').map(|(credentials, _)| credentials.to_owned());
        let bypass = either("NO_PROXY").unwrap_or_default();
        let bypass = bypass.split(',').map(|host| host.trim().trim_start_matches('.').to_lowercase());
        Some(Self {
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(80),
            credentials,
            bypass: bypass.filter(|host| !host.is_empty()).collect(),
        })
    }

    /// Whether `host` is reached through it.
    pub(super) fn serves(&self, host: &str) -> bool {
        let host = host.to_lowercase();
        let within =
            |domain: &str| host.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        !self.bypass.iter().any(|bypass| bypass == "*" || within(bypass))
    }

    /// A connection to `host`, through it.
    pub(super) async fn tunnel(&self, host: &str, port: u16) -> Result<TcpStream> {
        let mut stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        let login = self.credentials.as_ref().map_or(String::new(), |credentials| {
            format!("Proxy-Authorization: Basic {}\r\n", STANDARD.encode(credentials))
        });
        let request = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n{login}\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        // Byte by byte, for what follows the blank line is the host's.
        while !answer.ends_with(b"\r\n\r\n") {
            if answer.len() == MAX_ANSWER {
                return Err(Error::other("the proxy's answer has no end"));
            }
            answer.push(stream.read_u8().await?);
        }
        let line = String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned();
        match line.split(' ').nth(1) {
            Some(status) if status.starts_with('2') => Ok(stream),
            _ => Err(Error::other(format!("the proxy refuses: {line}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn proxy(vars: &[(&str, &str)]) -> Option<Proxy> {
        Proxy::from_vars(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn variables_name_the_proxy_and_who_goes_without() {
        assert_eq!(proxy(&[]), None);
        assert_eq!(proxy(&[("HTTPS_PROXY", "socks5://gate:1080")]), None);
        let gate = proxy(&[("https_proxy", "http://me:secret@gate:3128"), ("NO_PROXY", "localhost, .corp.example")]);
        let gate = gate.unwrap();
        assert_eq!(format!("{gate:?}"), "Proxy(gate:3128)");
        assert!(gate.serves("huggingface.co") && gate.serves("notcorp.example"));
        assert!(!gate.serves("localhost") && !gate.serves("hub.corp.example") && !gate.serves("Corp.Example"));
        assert!(!proxy(&[("ALL_PROXY", "gate"), ("no_proxy", "*")]).unwrap().serves("huggingface.co"));
    }

    #[tokio::test]
    async fn a_tunnel_is_asked_for_and_what_follows_is_the_hosts() {
        for (status, opens) in [("200 Connection established", true), ("407 Proxy Authentication Required", false)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let asked = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                stream.write_all(format!("HTTP/1.1 {status}\r\nVia: x\r\n\r\nhello").as_bytes()).await.unwrap();
                String::from_utf8(head).unwrap()
            });
            let gate = proxy(&[("HTTPS_PROXY", &format!("http://me:word@{address}"))]).unwrap();
            match gate.tunnel("hub.example", 443).await {
                Ok(mut stream) => {
                    let mut rest = String::new();
                    stream.read_to_string(&mut rest).await.unwrap();
                    assert!(opens && rest == "hello", "{rest}");
                }
                Err(error) => assert!(!opens && error.to_string().contains("407"), "{error}"),
            }
            let head = asked.await.unwrap();
            assert!(head.starts_with("CONNECT hub.example:443 HTTP/1.1\r\n"), "{head}");
            assert!(head.contains("Proxy-Authorization: Basic bWU6d29yZA=="), "{head}");
        }
    }
}
