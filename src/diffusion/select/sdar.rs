//! SDAR: which positions of a block commit at the least, and which beyond that (`generate.py`, JetEngine).

use super::highest;

/// Indices of all values above `threshold` if they are at least `n`, else of the `n` highest.
pub(super) fn dynamic(values: &[f64], n: usize, threshold: f64) -> Vec<usize> {
    let chosen: Vec<usize> = (0..values.len()).filter(|&i| values[i] > threshold).collect();
    if chosen.len() >= n { chosen } else { highest(values, n) }
}

/// Indices of the lowest entropies, given as negative numbers, while their sum is below `budget`, and of the `n` lowest in
/// any case.
pub(super) fn entropy_bounded(values: &[f64], n: usize, budget: f64) -> Vec<usize> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(|a, b| b.total_cmp(a));
    let mut sum = 0.0;
    let within = |value: &&f64| {
        sum -= **value;
        sum < budget
    };
    let affordable = sorted.iter().take_while(within).count();
    highest(values, affordable.max(n).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_that_too_few_pass_gives_way_to_the_share() {
        assert_eq!(dynamic(&[0.9, 0.2, 0.8, 0.5], 1, 0.7), [0, 2]);
        assert_eq!(dynamic(&[0.9, 0.2, 0.8, 0.5], 3, 0.7), [0, 2, 3]);
        assert_eq!(dynamic(&[0.9, 0.2, 0.8, 0.5], 1, 0.9), [0], "the comparison is strict, the best one stays");
        assert_eq!(dynamic(&[0.9], 4, 0.5), [0]);
    }

    #[test]
    fn entropies_are_spent_from_a_budget() {
        // Sums 0.1, 0.3, 0.8, 2.8 in order of entropy.
        let values = [-0.5, -0.1, -2.0, -0.2];
        assert_eq!(entropy_bounded(&values, 1, 0.35), [1, 3]);
        assert_eq!(entropy_bounded(&values, 1, 0.9), [0, 1, 3]);
        assert_eq!(entropy_bounded(&values, 1, 0.05), [1]);
        assert_eq!(entropy_bounded(&values, 0, 0.0), [1]);
        assert_eq!(entropy_bounded(&values, 3, 0.0), [0, 1, 3]);
        assert_eq!(entropy_bounded(&values, 1, 100.0), [0, 1, 2, 3]);
    }
}
