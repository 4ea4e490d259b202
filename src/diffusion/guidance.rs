//! Classifier-free guidance: two rows of logits into one.
//!
//! Done in f32 on the host, where the sampler reads the row anyway; one pass, no intermediate tensors.

/// `(1 + w)·conditional − w·unconditional`, id by id.
#[must_use]
pub fn combine(conditional: &[f32], unconditional: &[f32], w: f32) -> Vec<f32> {
    conditional.iter().zip(unconditional).map(|(&c, &u)| (1.0 + w) * c - w * u).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_away_from_the_unconditional_row() {
        assert_eq!(combine(&[1.0, 2.0], &[0.5, 4.0], 2.0), [2.0, -2.0]);
        assert_eq!(combine(&[1.0, 2.0], &[0.5, 4.0], 0.0), [1.0, 2.0]);
    }
}
