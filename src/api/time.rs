//! Moments as the replies show them.

/// RFC 3339, of microseconds since 1970.
pub(super) fn timestamp(microseconds: i64) -> String {
    jiff::Timestamp::from_microsecond(microseconds).unwrap_or_default().to_string()
}
