//! Which addresses a hook may be called at. A URL comes from the operator, but a name in it resolves to whatever its
//! DNS says: to a cloud's metadata service, say. So names are resolved once, every address is judged, and the
//! connection goes to the address that was judged.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::HookError;

/// How reachable an address is for a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Anyone may.
    Public,
    /// Only when the operator lists it.
    Private,
    /// Nobody may: link-local (which is where metadata services are), multicast, unspecified.
    Never,
}

/// Metadata services outside the link-local ranges.
const METADATA: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// Judges one address. IPv4 inside IPv6 (mapped, compatible, NAT64, 6to4) is judged as that IPv4 address.
#[must_use]
pub fn reach(ip: IpAddr) -> Reach {
    if METADATA.contains(&ip) {
        return Reach::Never;
    }
    match ip {
        IpAddr::V4(v4) => reach_v4(v4),
        IpAddr::V6(v6) => match embedded_v4(v6) {
            Some(v4) => reach(IpAddr::V4(v4)),
            None => reach_v6(v6),
        },
    }
}

fn reach_v4(ip: Ipv4Addr) -> Reach {
    let [a, b, c, _] = ip.octets();
    if ip.is_link_local() || ip.is_multicast() || ip.is_broadcast() || a == 0 {
        Reach::Never
    } else if ip.is_loopback()
        || ip.is_private()
        || a == 100 && b & 0xc0 == 64
        || (a, b, c) == (192, 0, 0)
        || a == 198 && b & 0xfe == 18
        || a >= 240
        || ip.is_documentation()
    {
        Reach::Private
    } else {
        Reach::Public
    }
}

fn reach_v6(ip: Ipv6Addr) -> Reach {
    let first = ip.segments()[0];
    if ip.is_unspecified() || ip.is_multicast() || first & 0xffc0 == 0xfe80 {
        Reach::Never
    } else if first & 0xe000 == 0x2000 && (first, ip.segments()[1]) != (0x2001, 0x0db8) {
        Reach::Public
    } else {
        Reach::Private
    }
}

fn embedded_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = ip.segments();
    let join = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match s {
        _ if ip.is_loopback() || ip.is_unspecified() => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(join(high, low)),
        [0x2002, high, low, ..] => Some(join(high, low)),
        // Teredo hides the client's address by inverting it.
        [0x2001, 0, .., high, low] => Some(join(!high, !low)),
        _ => None,
    }
}

/// Where `host:port` is to be connected to. `listed` are the operator's `host:port` exceptions, by name or address.
///
/// # Errors
/// `Connection` when the name does not resolve within `timeout`; `AddressRefused` when any of its addresses may not
/// be reached, since a name of which one address is inside and another outside is a trick.
pub async fn resolve(host: &str, port: u16, listed: &[String], timeout: Duration) -> Result<SocketAddr, HookError> {
    let bare = crate::net::bare(host);
    let looked_up = tokio::time::timeout(timeout, tokio::net::lookup_host((bare, port))).await;
    let found: Vec<SocketAddr> = match looked_up {
        Err(_) => return Err(HookError::Timeout(timeout)),
        Ok(Err(error)) => return Err(HookError::Connection(format!("{host} does not resolve: {error}"))),
        Ok(Ok(found)) => found.collect(),
    };
    judge(host, port, &found, listed)
}

/// The first of `found`, if all of them may be reached.
///
/// # Errors
/// As [`resolve`].
pub fn judge(host: &str, port: u16, found: &[SocketAddr], listed: &[String]) -> Result<SocketAddr, HookError> {
    let named = |name: &str| listed.iter().any(|entry| entry.eq_ignore_ascii_case(name));
    let by_name = named(&format!("{host}:{port}"));
    for address in found {
        let ok = match reach(address.ip()) {
            Reach::Public => true,
            Reach::Private => by_name || named(&address.to_string()),
            Reach::Never => false,
        };
        if !ok {
            return Err(HookError::AddressRefused(format!("{host}:{port} ({})", address.ip())));
        }
    }
    found.first().copied().ok_or_else(|| HookError::Connection(format!("{host} has no address")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_public_internet_is_public() {
        let of = |text: &str| reach(text.parse().unwrap());
        for never in [
            "169.254.169.254",
            "169.254.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "255.255.255.255",
            "100.100.100.200",
            "fd00:ec2::254",
            "fe80::1",
            "ff02::1",
            "::",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "::169.254.169.254",
        ] {
            assert_eq!(of(never), Reach::Never, "{never}");
        }
        for private in [
            "127.0.0.1",
            "127.8.8.8",
            "10.0.0.5",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "100.64.0.1",
            "198.18.0.1",
            "192.0.0.1",
            "240.0.0.1",
            "192.0.2.1",
            "::1",
            "fc00::1",
            "fd12::1",
            "::ffff:10.0.0.1",
            "::ffff:127.0.0.1",
            "64:ff9b::a00:1",
            "2001:db8::1",
            "fec0::1",
            "2002:7f00:1::",
            "2001:0:1:2:3:4:80ff:fffe",
        ] {
            assert_eq!(of(private), Reach::Private, "{private}");
        }
        for public in
            ["1.1.1.1", "172.32.0.1", "172.15.0.1", "100.128.0.1", "192.169.0.1", "2606:4700::1111", "::ffff:8.8.8.8"]
        {
            assert_eq!(of(public), Reach::Public, "{public}");
        }
    }

    #[test]
    fn a_listed_host_may_be_private_but_never_metadata() {
        let addresses = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let judge = |found: &[&str], listed: &[&str]| {
            let listed: Vec<String> = listed.iter().map(|&l| l.to_owned()).collect();
            super::judge("judge.lan", 8000, &addresses(found), &listed)
        };
        let refused = |result| matches!(result, Err(HookError::AddressRefused(_)));
        assert!(refused(judge(&["10.0.0.5:8000"], &[])));
        assert!(refused(judge(&["10.0.0.5:8000"], &["judge.lan:8001", "10.0.0.5"])));
        assert!(judge(&["10.0.0.5:8000"], &["10.0.0.5:8000"]).is_ok());
        assert!(judge(&["10.0.0.5:8000"], &["Judge.LAN:8000"]).is_ok());
        assert!(refused(judge(&["169.254.169.254:8000"], &["judge.lan:8000", "169.254.169.254:8000"])));
        assert!(refused(judge(&["1.1.1.1:8000", "10.0.0.5:8000"], &[])), "one inside, one outside");
        assert!(matches!(judge(&[], &[]), Err(HookError::Connection(_))));
    }
}
