//! Arrays of numbers as blobs: 4-byte little-endian elements, so that a database may move between machines.

use super::StoreError;

/// A number that is kept as 4 little-endian bytes.
pub(super) trait Element: Copy {
    /// To bytes.
    fn to_le(self) -> [u8; 4];
    /// From bytes.
    fn from_le(bytes: [u8; 4]) -> Self;
}

macro_rules! element {
    ($($number:ty),*) => {$(
        impl Element for $number {
            fn to_le(self) -> [u8; 4] {
                self.to_le_bytes()
            }
            fn from_le(bytes: [u8; 4]) -> Self {
                Self::from_le_bytes(bytes)
            }
        }
    )*};
}
element!(u32, i32, f32);

/// `values.len() * 4` bytes.
pub(super) fn encode<T: Element>(values: &[T]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le()).collect()
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// `Database` when the blob is not a whole number of elements.
pub(super) fn decode<T: Element>(column: &str, blob: &[u8]) -> Result<Vec<T>, StoreError> {
    let (elements, rest) = blob.as_chunks::<4>();
    if !rest.is_empty() {
        let problem = format!("column {column} has {} bytes, not a multiple of 4", blob.len());
        return Err(StoreError::Database(problem));
    }
    Ok(elements.iter().map(|bytes| T::from_le(*bytes)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_little_endian_and_come_back() {
        assert_eq!(encode(&[1_u32, u32::MAX]), [1, 0, 0, 0, 255, 255, 255, 255]);
        assert_eq!(decode::<i32>("c", &encode(&[-1_i32, i32::MIN])).unwrap(), [-1, i32::MIN]);
        assert_eq!(decode::<f32>("c", &encode(&[-0.5_f32])).unwrap(), [-0.5_f32]);
        assert!(decode::<u32>("c", &[]).unwrap().is_empty());
    }

    #[test]
    fn a_torn_blob_is_an_error() {
        let error = decode::<u32>("tokens", &[0; 7]).unwrap_err().to_string();
        assert!(error.contains("tokens") && error.contains('7'), "{error}");
    }
}
