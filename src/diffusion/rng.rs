//! Counter-based randomness: a draw is a pure function of what it is for, never of what was drawn before.
//!
//! A request therefore gets the same tokens alone, in any batch and after any preemption: the draw for
//! (seed, step, position) does not know who else is running. Sequential draws ([`Stream`]) exist for data
//! generation, where order is part of the definition. No tensors and no global generator live here.

/// SplitMix64's increment, 2⁶⁴ divided by the golden ratio (Steele, Lea and Flood, 2014).
const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

/// SplitMix64's output for state `x`: a bijection of the 64-bit integers that passes for random.
#[must_use]
pub fn mix64(x: u64) -> u64 {
    let mut z = x.wrapping_add(GAMMA);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// What a draw is for, so that two uses at the same (seed, step, position) are independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// The token of a masked position.
    Token = 1,
    /// The confidence noise of a selector, or its decision to commit.
    Select = 2,
    /// The seed of one of the `n` completions of a request.
    Completion = 3,
    /// Whether training masks a position of a completion.
    Mask = 4,
    /// Whether training masks a position of a prompt.
    PromptMask = 5,
    /// The mask ratio of one draw of training.
    MaskRatio = 6,
}

/// A uniform draw in `[0, 1)` with 53 random bits, keyed by everything it depends on.
#[must_use]
pub fn uniform(seed: u64, purpose: Purpose, step: u32, position: u32) -> f64 {
    let counter = (u64::from(step) << 32) | u64::from(position);
    to_unit(mix64(mix64(mix64(seed) ^ purpose as u64) ^ counter))
}

/// A standard Gumbel draw, keyed as [`uniform`].
#[must_use]
pub fn gumbel(seed: u64, purpose: Purpose, step: u32, position: u32) -> f64 {
    // The smallest step of `uniform` keeps both logarithms finite.
    let u = uniform(seed, purpose, step, position).max(f64::EPSILON / 4.0);
    -(-u.ln()).max(f64::MIN_POSITIVE).ln()
}

/// The seed of completion `index` of a request with `seed`. Index 0 keeps the request's own seed, so `n = 1` is
/// reproducible from what the client sent. The others have 53 bits, which JSON numbers carry exactly everywhere.
#[must_use]
pub fn completion_seed(seed: u64, index: u32) -> u64 {
    if index == 0 { seed } else { mix64(mix64(seed ^ Purpose::Completion as u64) ^ u64::from(index)) >> 11 }
}

fn to_unit(bits: u64) -> f64 {
    (bits >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// A sequential generator (SplitMix64) for procedural data: same seed, same sequence, on every platform.
#[derive(Debug, Clone)]
pub struct Stream {
    state: u64,
}

impl Stream {
    /// A stream that depends on all of `seed` and `index`: item `index` of a data set is always the same item.
    #[must_use]
    pub fn new(seed: u64, index: u64) -> Self {
        Self { state: mix64(mix64(seed) ^ index) }
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let out = mix64(self.state);
        self.state = self.state.wrapping_add(GAMMA);
        out
    }

    /// A uniform draw in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        to_unit(self.next_u64())
    }

    /// A uniform integer in `0..n`; 0 when `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        // Multiply-shift: the bias is below n / 2⁶⁴.
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// A uniformly chosen element; `None` of an empty slice.
    pub fn choose<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        items.get(self.below(items.len()))
    }

    /// Fisher–Yates shuffle in place.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mix64_is_splitmix64() {
        // golden/maskgrpo/splitmix64.json
        assert_eq!(mix64(0), 16_294_208_416_658_607_535);
        assert_eq!(mix64(1), 10_451_216_379_200_822_465);
        assert_eq!(mix64(u64::MAX), 16_490_336_266_968_443_936);
    }

    #[test]
    fn uniform_draws_look_uniform_and_independent() {
        let n = 20_000;
        let (mut sum, mut cross) = (0.0, 0.0);
        for position in 0..n {
            let a = uniform(7, Purpose::Token, 3, position);
            let b = uniform(7, Purpose::Select, 3, position);
            assert!((0.0..1.0).contains(&a));
            sum += a;
            cross += (a - 0.5) * (b - 0.5);
        }
        // Standard errors: 0.29/√n = 0.002 and 1/12/√n = 0.0006.
        assert!((sum / f64::from(n) - 0.5).abs() < 0.01);
        assert!((cross / f64::from(n)).abs() < 0.003);
    }

    #[test]
    fn gumbel_has_its_mean() {
        let n = 20_000;
        let mean = (0..n).map(|p| gumbel(1, Purpose::Token, 0, p)).sum::<f64>() / f64::from(n);
        assert!((mean - 0.5772).abs() < 0.04, "{mean}");
    }

    #[test]
    fn the_first_completion_keeps_the_request_seed() {
        assert_eq!(completion_seed(9, 0), 9);
        assert_ne!(completion_seed(9, 1), completion_seed(9, 2));
        assert_ne!(completion_seed(9, 1), completion_seed(10, 1));
        assert!((1..100).all(|index| completion_seed(9, index) < 1 << 53));
    }

    #[test]
    fn streams_repeat_and_differ() {
        let draw = |seed, index| Stream::new(seed, index).next_u64();
        assert_eq!(draw(1, 2), draw(1, 2));
        assert_ne!(draw(1, 2), draw(1, 3));
        let mut s = Stream::new(0, 0);
        assert!((0..1000).all(|_| s.below(7) < 7));
    }
}
