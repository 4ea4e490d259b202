//! Users without their names: only a keyed hash of a user's id ever reaches the log.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Bytes of the key.
pub const SUBJECT_KEY_BYTES: usize = 32;

/// Bytes of a block of SHA-256; HMAC pads its key to it with zeros (RFC 2104 §2).
const BLOCK_BYTES: usize = 64;

/// Hashes users' ids. The key is random per data directory and lives in its database, so hashes cannot be looked up in
/// a table made elsewhere and do not match between servers.
#[derive(Clone)]
pub struct SubjectKey([u8; BLOCK_BYTES]);

impl SubjectKey {
    /// A hasher with this key.
    #[must_use]
    pub fn new(key: [u8; SUBJECT_KEY_BYTES]) -> Self {
        let mut block = [0; BLOCK_BYTES];
        block[..SUBJECT_KEY_BYTES].copy_from_slice(&key);
        Self(block)
    }

    /// HMAC-SHA256 of `subject`: 32 bytes, the same for the same user as long as the data directory lives.
    #[must_use]
    pub fn hash_subject(&self, subject: &str) -> Vec<u8> {
        let mut mac = Hmac::<Sha256>::new(&self.0.into());
        mac.update(subject.as_bytes());
        mac.finalize().into_bytes().to_vec()
    }
}

impl fmt::Debug for SubjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SubjectKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_hmac_sha256() {
        // Expected value: Python's hmac.new(bytes(range(32)), b"ada", "sha256").hexdigest().
        let key = SubjectKey::new(std::array::from_fn(|i| u8::try_from(i).unwrap()));
        let hex: String = (key.hash_subject("ada").iter()).map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "9556fd532c3b9e35076ea008688401f9cb99ba974b3efedbb0c450109b523c97");
    }

    #[test]
    fn debug_hides_the_key() {
        assert_eq!(format!("{:?}", SubjectKey::new([7; 32])), "SubjectKey(..)");
    }
}
