//! From a row of logits to a token: pure functions of the row and one uniform number.
//!
//! A categorical draw goes through the inverse distribution function in f64, ids in order. It has the distribution of
//! the reference's Gumbel argmax (`argmax(logits − T·ln(−ln U))`) and takes one random number instead of one per id.

use super::softmax::{highest, weights};

/// How a token is drawn from its distribution.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rule {
    /// 0 takes the most likely id, the lowest one of equals.
    pub temperature: f64,
    /// Ids kept, the most likely first; 0 keeps all.
    pub top_k: usize,
    /// Smallest share of the probability to keep; 1 keeps all.
    pub top_p: f64,
    /// What a position is ranked by.
    pub score: Score,
}

/// What positions are ranked by; the highest commit first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Score {
    /// The token's probability under softmax(logits), nothing scaled, filtered or banned (LLaDA, MaskGIT).
    Plain,
    /// The same among the ids that may be drawn (Fast-dLLM).
    Allowed,
    /// The token's probability in the tempered and filtered distribution (Dream).
    Filtered,
    /// How far the two likeliest ids are apart in it (Dream).
    Margin,
    /// Its negative entropy (Dream).
    NegativeEntropy,
    /// The token's probability in the distribution that it is drawn from: tempered and filtered (SDAR).
    Drawn,
    /// The negative entropy of that distribution (SDAR).
    DrawnEntropy,
}

impl Score {
    /// Dream takes the nucleus of the whole distribution and then the top k; the others take the nucleus of the top k.
    fn nucleus_first(self) -> bool {
        matches!(self, Self::Filtered | Self::Margin | Self::NegativeEntropy)
    }
}

/// Indices of a row that are special.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Barred {
    /// Never drawn, yet part of the softmax (the mask id).
    pub never: Vec<usize>,
    /// Never drawn and no part of anything.
    pub absent: Vec<usize>,
    /// Drawn as any, but without any confidence.
    pub doubted: Vec<usize>,
}

/// A drawn token and what the model thought of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// Index into the row.
    pub index: usize,
    /// Its probability under softmax(logits), nothing scaled, filtered or banned: the reference's confidence.
    pub confidence: f64,
    /// What the position is ranked by.
    pub score: f64,
    /// Its log-probability among the ids that may be drawn, nothing scaled or filtered.
    pub logprob: f64,
}

/// Draws from `row` (logits, one per id) with `uniform` in `[0, 1)`. `None` when no id is left or the row is not
/// finite.
#[must_use]
pub fn draw(row: &[f32], barred: &Barred, rule: Rule, uniform: f64) -> Option<Draw> {
    let mut allowed = row.to_vec();
    set(&mut allowed, &barred.never, f32::NEG_INFINITY);
    set(&mut allowed, &barred.absent, f32::NEG_INFINITY);
    let highest = highest(&allowed);
    // The first of the highest; none when nothing is left or the row is not finite.
    let best = allowed.iter().position(|&logit| logit == highest && logit.is_finite())?;
    let top = f64::from(highest);
    let mut plain = vec![0.0; row.len()];
    let allowed_mass = weights(&allowed, top, 1.0, &mut plain);
    let banned_mass: f64 = barred.never.iter().filter_map(|&i| row.get(i)).map(|&l| (f64::from(l) - top).exp()).sum();
    // A banned logit may be far above the rest: then the confidence is 0.
    if !allowed_mass.is_finite() || banned_mass.is_nan() {
        return None;
    }
    let index = if rule.temperature > 0.0 { categorical(&allowed, top, rule, uniform) } else { best };
    let logprob = f64::from(allowed[index]) - top - allowed_mass.ln();
    // Taken out of the sum term by term: they may be nearly all of it.
    let mut sure = allowed_mass;
    if !barred.doubted.is_empty() {
        set(&mut plain, &barred.doubted, 0.0);
        sure = plain.iter().sum();
    }
    let probability = |mass: f64| if plain[index] > 0.0 { plain[index] / mass } else { 0.0 };
    let confidence = probability(sure + banned_mass);
    let score = match rule.score {
        Score::Plain => confidence,
        Score::Allowed => probability(sure),
        Score::Drawn | Score::DrawnEntropy => drawn_score(row, barred, rule, index),
        _ => filtered_score(row, barred, rule, index),
    };
    Some(Draw { index, confidence, score, logprob })
}

/// Sets what `indices` name to `value`.
fn set<T: Copy>(row: &mut [T], indices: &[usize], value: T) {
    for &i in indices {
        if let Some(slot) = row.get_mut(i) {
            *slot = value;
        }
    }
}

/// SDAR's scores. At temperature 0 nothing is scaled or filtered. Its code knows no banned ids, so they are part of the
/// distribution.
fn drawn_score(row: &[f32], barred: &Barred, rule: Rule, index: usize) -> f64 {
    let mut row = row.to_vec();
    set(&mut row, &barred.absent, f32::NEG_INFINITY);
    let greedy = rule.temperature == 0.0;
    let p = distribution(&row, if greedy { Rule { top_k: 0, top_p: 1.0, ..rule } } else { rule });
    match rule.score {
        Score::DrawnEntropy => p.iter().filter(|&&p| p > 0.0).map(|p| p * p.ln()).sum(),
        _ => p[index],
    }
}

/// The tempered and filtered distribution of a row.
fn distribution(row: &[f32], rule: Rule) -> Vec<f64> {
    let scale = if rule.temperature > 0.0 { 1.0 / rule.temperature } else { 1.0 };
    let mut p = vec![0.0; row.len()];
    weights(row, f64::from(highest(row)), scale, &mut p);
    filter(&mut p, rule);
    let total: f64 = p.iter().sum();
    p.iter_mut().for_each(|p| *p /= total);
    p
}

/// Dream's scores. Its code knows no banned ids, so they are part of the distribution; where one of them is the
/// likeliest of all, the position waits for the others.
fn filtered_score(row: &[f32], barred: &Barred, rule: Rule, index: usize) -> f64 {
    let mut row = row.to_vec();
    set(&mut row, &barred.absent, f32::NEG_INFINITY);
    let top = highest(&row);
    if barred.never.iter().any(|&i| row.get(i) == Some(&top)) {
        return f64::NEG_INFINITY;
    }
    let p = distribution(&row, rule);
    match rule.score {
        Score::Margin => {
            let (mut first, mut second) = (0.0, 0.0);
            for &p in &p {
                second = f64::max(second, p.min(first));
                first = f64::max(first, p);
            }
            first - second
        }
        Score::NegativeEntropy => p.iter().map(|p| p * (p + 1e-10).ln()).sum(),
        _ => p[index],
    }
}

/// The smallest index whose cumulative weight exceeds `uniform` of the total; `top` is the largest logit.
fn categorical(row: &[f32], top: f64, rule: Rule, uniform: f64) -> usize {
    let mut tempered = vec![0.0; row.len()];
    let mut total = weights(row, top, 1.0 / rule.temperature, &mut tempered);
    if filter(&mut tempered, rule) {
        total = tempered.iter().sum();
    }
    let target = uniform * total;
    let (mut cumulative, mut last) = (0.0, 0);
    for (i, &weight) in tempered.iter().enumerate() {
        if weight > 0.0 {
            cumulative += weight;
            last = i;
            if target < cumulative {
                break;
            }
        }
    }
    // Rounding can leave the target at the very end: then the last possible id is meant.
    last
}

/// Zeroes the weights outside the top k and the nucleus; false when there is neither. Of equals the lowest id stays.
fn filter(weights: &mut [f64], rule: Rule) -> bool {
    let (k, p) = (rule.top_k, rule.top_p);
    if (k == 0 || k >= weights.len()) && p >= 1.0 {
        return false;
    }
    let mut order: Vec<usize> = (0..weights.len()).collect();
    let by_weight = |a: &usize, b: &usize| weights[*b].total_cmp(&weights[*a]).then(a.cmp(b));
    let limit = if k > 0 { k.min(order.len()) } else { order.len() };
    // Of what the nucleus is a share.
    let whole = if rule.score.nucleus_first() { Some(weights.iter().sum::<f64>()) } else { None };
    if limit < order.len() {
        order.select_nth_unstable_by(limit - 1, by_weight);
        order.truncate(limit);
    }
    if p < 1.0 {
        order.sort_unstable_by(by_weight);
        let total = whole.unwrap_or_else(|| order.iter().map(|&i| weights[i]).sum());
        let mut cumulative = 0.0;
        let kept = order.iter().take_while(|&&i| {
            let before = cumulative;
            cumulative += weights[i];
            before < p * total
        });
        let kept = kept.count().max(1);
        order.truncate(kept);
    }
    let mut keep = vec![false; weights.len()];
    order.iter().for_each(|&i| keep[i] = true);
    weights.iter_mut().zip(keep).filter(|(_, keep)| !keep).for_each(|(w, _)| *w = 0.0);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::rng::{Purpose, uniform};

    const PLAIN: Rule = Rule { temperature: 1.0, top_k: 0, top_p: 1.0, score: Score::Plain };
    const GREEDY: Rule = Rule { temperature: 0.0, top_k: 0, top_p: 1.0, score: Score::Plain };

    fn never(banned: &[usize]) -> Barred {
        Barred { never: banned.to_vec(), ..Barred::default() }
    }

    fn index(row: &[f32], banned: &[usize], rule: Rule, u: f64) -> usize {
        draw(row, &never(banned), rule, u).unwrap().index
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals_and_never_a_banned_id() {
        let row = [0.0, 3.0, 3.0, 9.0];
        assert_eq!(index(&row, &[3], GREEDY, 0.9), 1);
        assert_eq!(index(&row, &[], GREEDY, 0.0), 3);
        assert!(draw(&row, &never(&[0, 1, 2, 3]), GREEDY, 0.5).is_none());
    }

    #[test]
    fn confidence_counts_banned_ids_and_logprob_does_not() {
        let d = draw(&[0.0, 0.0, 0.0, 0.0], &never(&[2, 3]), GREEDY, 0.0).unwrap();
        assert!((d.confidence - 0.25).abs() < 1e-12);
        assert!((d.logprob - 0.5f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn rows_that_are_not_finite_are_refused() {
        assert!(draw(&[0.0, f32::NAN], &never(&[]), GREEDY, 0.5).is_none());
        assert!(draw(&[0.0, f32::INFINITY], &never(&[]), PLAIN, 0.5).is_none());
        assert_eq!(index(&[f32::NEG_INFINITY, 1.0], &[], PLAIN, 0.5), 1);
    }

    #[test]
    fn the_inverse_distribution_function_has_its_edges() {
        let row = [1.0f32.ln(), 2.0f32.ln(), 1.0f32.ln()];
        assert_eq!([0.0, 0.2, 0.3, 0.7, 0.8].map(|u| index(&row, &[], PLAIN, u)), [0, 0, 1, 1, 2]);
        assert_eq!(index(&row, &[], PLAIN, 1.0 - f64::EPSILON / 2.0), 2);
        assert_eq!(index(&row, &[2], PLAIN, 1.0 - f64::EPSILON / 2.0), 1);
    }

    #[test]
    fn frequencies_follow_the_tempered_softmax() {
        let row = [0.3f32, -1.0, 1.2, 0.0];
        let rule = Rule { temperature: 0.7, ..PLAIN };
        let n = 40_000;
        let mut counts = [0.0; 4];
        for p in 0..n {
            counts[index(&row, &[], rule, uniform(5, Purpose::Token, 0, p))] += 1.0 / f64::from(n);
        }
        let weights = row.map(|l| (f64::from(l) / 0.7).exp());
        let total: f64 = weights.iter().sum();
        for (count, weight) in counts.iter().zip(weights) {
            // Standard error at most 0.5/√n = 0.0025.
            assert!((count - weight / total).abs() < 0.01, "{counts:?}");
        }
    }

    #[test]
    fn filters_keep_the_most_likely() {
        let row = [0.1f32.ln(), 0.4f32.ln(), 0.2f32.ln(), 0.3f32.ln()];
        let support = |rule: Rule| -> Vec<usize> {
            let mut seen: Vec<usize> = (0..1000).map(|i| index(&row, &[], rule, f64::from(i) / 1000.0)).collect();
            seen.sort_unstable();
            seen.dedup();
            seen
        };
        assert_eq!(support(Rule { top_k: 2, ..PLAIN }), [1, 3]);
        assert_eq!(support(Rule { top_k: 1, ..PLAIN }), [1]);
        assert_eq!(support(Rule { top_p: 0.75, ..PLAIN }), [1, 2, 3]);
        assert_eq!(support(Rule { top_p: 0.65, ..PLAIN }), [1, 3]);
        assert_eq!(support(Rule { top_p: 1e-9, ..PLAIN }), [1]);
        // The nucleus is taken of what top-k left: 0.4 / 0.7 is above a half.
        assert_eq!(support(Rule { top_k: 2, top_p: 0.5, ..PLAIN }), [1]);
    }

    #[test]
    fn filters_keep_the_lowest_of_equals() {
        let row = [0.0f32; 4];
        assert_eq!(index(&row, &[], Rule { top_k: 2, ..PLAIN }, 0.99), 1);
        assert_eq!(index(&row, &[], Rule { top_p: 0.5, ..PLAIN }, 0.99), 1);
    }

    #[test]
    fn absent_ids_count_nowhere_and_doubted_ones_have_no_confidence() {
        let row = [2.0f32.ln(), 1.0f32.ln(), 1.0f32.ln(), 4.0f32.ln()];
        let drawn = |barred: Barred| draw(&row, &barred, GREEDY, 0.0).unwrap();
        let absent = drawn(Barred { never: vec![1], absent: vec![3], doubted: vec![] });
        assert_eq!(absent.index, 0);
        assert!((absent.confidence - 0.5).abs() < 1e-7 && (absent.logprob - (2.0f64 / 3.0).ln()).abs() < 1e-7);
        let doubted = drawn(Barred { never: vec![1], absent: vec![], doubted: vec![3, 2] });
        assert_eq!((doubted.index, doubted.confidence, doubted.score), (3, 0.0, 0.0));
        assert!((doubted.logprob - (4.0f64 / 7.0).ln()).abs() < 1e-7);
        let sure = drawn(Barred { never: vec![3], absent: vec![], doubted: vec![2] });
        assert_eq!(sure.index, 0);
        assert!((sure.confidence - 2.0 / 7.0).abs() < 1e-7);
        let allowed = draw(&row, &never(&[3]), Rule { score: Score::Allowed, ..GREEDY }, 0.0).unwrap();
        assert!((allowed.score - 0.5).abs() < 1e-7 && (allowed.confidence - 0.25).abs() < 1e-7);
    }

    #[test]
    fn dreams_scores_are_those_of_the_filtered_distribution() {
        let row = [0.1f32.ln(), 0.4f32.ln(), 0.2f32.ln(), 0.3f32.ln()];
        let score = |score, rule: Rule| draw(&row, &never(&[]), Rule { score, ..rule }, 0.0).unwrap().score;
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} {b}");
        near(score(Score::Filtered, GREEDY), 0.4);
        near(score(Score::Margin, GREEDY), 0.1);
        near(score(Score::NegativeEntropy, GREEDY), [0.1f64, 0.2, 0.3, 0.4].map(|p| p * p.ln()).iter().sum());
        let two = Rule { top_k: 2, ..GREEDY };
        near(score(Score::Filtered, two), 4.0 / 7.0);
        near(score(Score::Margin, two), 1.0 / 7.0);
        near(score(Score::Filtered, Rule { top_p: 0.3, ..GREEDY }), 1.0);
        // The nucleus is a share of everything: 0.4 is below a half, so the second id stays.
        near(score(Score::Filtered, Rule { top_p: 0.5, ..two }), 4.0 / 7.0);
        // Drawn at 0: the first id, whose share is squared.
        near(score(Score::Filtered, Rule { temperature: 0.5, ..GREEDY }), 0.01 / 0.30);
        // The likeliest id may not be drawn: another is, and the position waits.
        let banned = draw(&row, &never(&[1]), Rule { score: Score::Margin, ..GREEDY }, 0.0).unwrap();
        assert_eq!((banned.index, banned.score), (3, f64::NEG_INFINITY));
    }
}
