//! Fast-dLLM: as many positions as are confident enough, and always the best one.

use super::highest;

/// Indices of all values from `threshold` on, and of the highest one in any case.
pub(super) fn confident(values: &[f64], threshold: f64) -> Vec<usize> {
    let chosen: Vec<usize> = (0..values.len()).filter(|&i| values[i] >= threshold).collect();
    if chosen.is_empty() { highest(values, 1) } else { chosen }
}

/// Indices of the highest values while the r-th of them (from 1) is at least `1 − factor/(r + 1)`, and of the highest
/// one in any case. (`NVlabs`' code takes all of them when only the last fails; dllm's does not.)
pub(super) fn by_factor(values: &[f64], factor: f64) -> Vec<usize> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(|a, b| b.total_cmp(a));
    let enough = |(i, &value): (usize, &f64)| value >= 1.0 - factor / (i + 2) as f64;
    let n = sorted.iter().enumerate().take_while(|&(i, value)| enough((i, value))).count();
    highest(values, n.max(1))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_threshold_rule_always_takes_one() {
        assert_eq!(confident(&[0.3, 0.8, 0.7], 0.75), [1]);
        assert_eq!(confident(&[0.3, 0.8, 0.7], 0.7), [1, 2]);
        assert_eq!(confident(&[0.3, 0.8, 0.7], 0.95), [1]);
    }

    #[test]
    fn the_factor_rule_gets_stricter_with_every_rank() {
        // Ranks must reach 0.5, 2/3, 3/4.
        assert_eq!(by_factor(&[0.6, 0.9, 0.7], 1.0), [1, 2]);
        assert_eq!(by_factor(&[0.8, 0.9, 0.7], 1.0), [0, 1]);
        assert_eq!(by_factor(&[0.1, 0.2], 1.0), [1]);
        assert_eq!(by_factor(&[1.0, 0.99, 1.0], 0.0), [0, 2]);
        assert_eq!(by_factor(&[], 1.0), [0; 0]);
    }

    /// Largest probability of a row, f64.
    fn best(row: &Value) -> f64 {
        let logits: Vec<f64> = row.as_array().unwrap().iter().map(|l| l.as_f64().unwrap()).collect();
        let top = logits.iter().copied().fold(f64::MIN, f64::max);
        1.0 / logits.iter().map(|l| (l - top).exp()).sum::<f64>()
    }

    #[test]
    fn transfer_rules_are_the_official_ones() {
        let golden: Value =
            serde_json::from_str(include_str!("../../../tests/golden/llada_fastdllm/golden.json")).unwrap();
        let cases = golden["transfer_rules"].as_array().unwrap();
        assert_eq!(cases.len(), 18);
        for (index, case) in cases.iter().enumerate() {
            // Six rules share logits and masks, which the first of them has.
            let shared = &cases[index / 6 * 6];
            for (row, transfer) in case["transfer"].as_array().unwrap().iter().enumerate() {
                let ones = |flags: &Value| -> Vec<usize> {
                    let flags = flags.as_array().unwrap().iter().enumerate();
                    flags.filter(|(_, flag)| flag.as_u64() == Some(1)).map(|(i, _)| i).collect()
                };
                let masked = ones(&shared["mask"][row]);
                let confidence: Vec<f64> = masked.iter().map(|&p| best(&shared["logits"][row][p])).collect();
                let chosen = match (case["factor"].as_f64(), case["threshold"].as_f64()) {
                    (Some(factor), _) => by_factor(&confidence, factor),
                    (_, Some(threshold)) => confident(&confidence, threshold),
                    _ => highest(&confidence, case["num_transfer_tokens"][row].as_u64().unwrap() as usize),
                };
                let chosen: Vec<usize> = chosen.into_iter().map(|i| masked[i]).collect();
                assert_eq!(chosen, ones(transfer), "case {index}, row {row}");
            }
        }
    }
}
