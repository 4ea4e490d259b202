//! From rewards to what every completion counts, by what the loss compares: an advantage over others of its prompt
//! (MaskGRPO and its relatives), a verdict (KTO), a place in a pair (DPO). Pure but for the running means.

use super::config::LossKind;
use crate::rl::advantage::{Baseline, Baselines, Dropped, group};
use crate::rl::lanes::Lane;
use crate::rl::reward::combine::Reward;

/// Below this, two scores are the same.
const SAME: f64 = 1e-9;

/// What becomes of a cluster's members.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Compared {
    /// The advantage of each member, ±1 where only its sign counts, or why it has none.
    pub(super) fates: Vec<Result<f64, &'static str>>,
    /// Those that have one, in the order that the loss reads them: DPO's preferred ones, each before its counterpart.
    pub(super) order: Vec<usize>,
}

/// Compares one run's completions.
pub(super) struct Comparison<'a> {
    loss: LossKind,
    /// What groups are compared with.
    baseline: Baseline,
    /// What MaskGRPO compares singles with.
    baselines: &'a mut Baselines,
    /// What KTO compares them with: the mean score of the run's singles, texts and images.
    means: [f64; 2],
}

impl<'a> Comparison<'a> {
    /// `singles`: of each single, whether it is an image, and its reward.
    pub(super) fn new<'r>(
        loss: LossKind,
        baseline: Baseline,
        baselines: &'a mut Baselines,
        singles: impl Iterator<Item = (bool, &'r Reward)>,
    ) -> Self {
        let mut sums = [(0.0, 0.0); 2];
        for (image, raw) in singles.filter_map(|(image, reward)| Some((image, reward.raw?))) {
            let (sum, n) = &mut sums[usize::from(image)];
            (*sum, *n) = (*sum + raw, *n + 1.0);
        }
        Self { loss, baseline, baselines, means: sums.map(|(sum, n)| sum / f64::max(n, 1.0)) }
    }

    /// Compares the members of a cluster of `lane`.
    pub(super) fn of(&mut self, lane: Lane, image: bool, rewards: &[Reward]) -> Compared {
        let mut fates: Vec<Result<f64, &'static str>> = if lane == Lane::Singles {
            // A single has nothing to be normalised by in its group: the score as it is.
            rewards.iter().map(|reward| self.single(image, reward.raw.unwrap_or(f64::NAN))).collect()
        } else {
            let known: Vec<f64> = rewards.iter().map(|reward| reward.reward.unwrap_or(f64::NAN)).collect();
            let advantages = group(&known, self.baseline).into_iter().zip(rewards);
            advantages
                .map(|(advantage, reward)| match reward.skip {
                    Some(skip) => Err(skip.reason()),
                    None => advantage.map_err(Dropped::as_str),
                })
                .collect()
        };
        let order = match self.loss {
            LossKind::MaskGrpo => used(&fates),
            LossKind::Kto => {
                for fate in &mut fates {
                    *fate = fate.and_then(|a| if a.abs() < SAME { Err("no_verdict") } else { Ok(a.signum()) });
                }
                used(&fates)
            }
            LossKind::Dpo => pair(&mut fates),
        };
        Compared { fates, order }
    }

    fn single(&mut self, image: bool, raw: f64) -> Result<f64, &'static str> {
        match self.loss {
            LossKind::Dpo => Err("no_pair"),
            LossKind::Kto if raw.is_finite() => Ok(raw - self.means[usize::from(image)]),
            LossKind::Kto => Err(Dropped::NotFinite.as_str()),
            LossKind::MaskGrpo => {
                let key = if image { "Image" } else { "Text" };
                self.baselines.single(key, raw).map_err(Dropped::as_str)
            }
        }
    }
}

fn used(fates: &[Result<f64, &'static str>]) -> Vec<usize> {
    (0..fates.len()).filter(|&at| fates[at].is_ok()).collect()
}

/// The best with the worst, the second best with the second worst, and so on while they differ: every completion is in
/// one pair at most, and the pairs that say most come first.
fn pair(fates: &mut [Result<f64, &'static str>]) -> Vec<usize> {
    let value = |fates: &[Result<f64, &'static str>], at: usize| fates[at].unwrap_or(f64::NAN);
    let mut sorted = used(fates);
    sorted.sort_by(|&a, &b| value(fates, b).total_cmp(&value(fates, a)));
    let mut order = Vec::with_capacity(sorted.len());
    for i in 0..sorted.len() / 2 {
        let (chosen, rejected) = (sorted[i], sorted[sorted.len() - 1 - i]);
        if value(fates, chosen) - value(fates, rejected) < SAME {
            break;
        }
        order.extend([chosen, rejected]);
    }
    for (at, fate) in fates.iter_mut().enumerate().filter(|(_, fate)| fate.is_ok()) {
        *fate = match order.iter().position(|&member| member == at) {
            Some(place) => Ok(if place % 2 == 0 { 1.0 } else { -1.0 }),
            None => Err("no_pair"),
        };
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rl::reward::combine::Skip;

    fn reward(value: f64) -> Reward {
        Reward { reward: Some(value), raw: Some(value), ..Reward::default() }
    }

    fn of(loss: LossKind, lane: Lane, values: &[f64]) -> Compared {
        let rewards: Vec<Reward> = values.iter().copied().map(reward).collect();
        let mut baselines = Baselines::default();
        let baseline = Baseline::Standard;
        Comparison::new(loss, baseline, &mut baselines, std::iter::empty()).of(lane, false, &rewards)
    }

    #[test]
    fn dpo_pairs_the_best_with_the_worst_and_leaves_the_middle() {
        let compared = of(LossKind::Dpo, Lane::Groups, &[0.2, 0.9, 0.0, 0.5, 0.7]);
        assert_eq!(compared.order, [1, 2, 4, 0]);
        assert_eq!(compared.fates, [Ok(-1.0), Ok(1.0), Ok(-1.0), Err("no_pair"), Ok(1.0)]);
        // Equal ones say nothing of each other.
        let compared = of(LossKind::Dpo, Lane::Groups, &[1.0, 0.0, 1.0, 1.0]);
        assert_eq!(compared.order.len(), 2);
        assert_eq!(compared.fates.iter().filter(|fate| **fate == Err("no_pair")).count(), 2);
        assert_eq!(of(LossKind::Dpo, Lane::Groups, &[1.0, 1.0]).fates, [Err("no_variance"); 2]);
        assert_eq!(of(LossKind::Dpo, Lane::Singles, &[1.0]).fates, [Err("no_pair")]);
    }

    #[test]
    fn kto_gives_verdicts_over_the_group_or_the_mean_of_the_singles() {
        let compared = of(LossKind::Kto, Lane::Groups, &[0.0, 0.5, 1.0]);
        assert_eq!((compared.fates, compared.order), (vec![Ok(-1.0), Err("no_verdict"), Ok(1.0)], vec![0, 2]));
        let (mut baselines, rated) = (Baselines::default(), [reward(1.0), reward(0.0), reward(1.0)]);
        let singles = || rated.iter().map(|reward| (true, reward));
        let mut comparison = Comparison::new(LossKind::Kto, Baseline::Standard, &mut baselines, singles());
        let fates: Vec<_> =
            rated.iter().map(|one| comparison.of(Lane::Singles, true, std::slice::from_ref(one)).fates[0]).collect();
        assert_eq!(fates, [Ok(1.0), Ok(-1.0), Ok(1.0)], "no warm-up: thumbs count from the first");
        let alike = [reward(1.0)];
        let mut comparison =
            Comparison::new(LossKind::Kto, Baseline::Standard, &mut baselines, alike.iter().map(|r| (true, r)));
        assert_eq!(comparison.of(Lane::Singles, true, &alike).fates, [Err("no_verdict")]);
    }

    #[test]
    fn without_deviations_a_group_counts_by_how_much_it_differs() {
        let largest = |baseline, values: &[f64]| {
            let rewards: Vec<Reward> = values.iter().copied().map(reward).collect();
            let mut baselines = Baselines::default();
            let mut comparison = Comparison::new(LossKind::MaskGrpo, baseline, &mut baselines, std::iter::empty());
            let fates = comparison.of(Lane::Groups, true, &rewards).fates;
            fates.into_iter().map(|fate| fate.unwrap().abs()).fold(0.0, f64::max)
        };
        let (alike, torn) = ([0.9, 1.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]);
        assert!(largest(Baseline::Standard, &alike) > largest(Baseline::Standard, &torn));
        assert!(largest(Baseline::MeanOnly, &alike) < 0.2 * largest(Baseline::MeanOnly, &torn));
    }

    #[test]
    fn what_the_hooks_left_out_stays_out_of_groups() {
        let mut rewards = [reward(1.0), reward(0.0), reward(0.5)];
        rewards[2] = Reward { skip: Some(Skip::Missing), ..Reward::default() };
        for loss in [LossKind::MaskGrpo, LossKind::Kto, LossKind::Dpo] {
            let mut baselines = Baselines::default();
            let mut comparison = Comparison::new(loss, Baseline::Standard, &mut baselines, std::iter::empty());
            let compared = comparison.of(Lane::Groups, false, &rewards);
            assert_eq!(compared.fates[2], Err("missing"), "{loss:?}");
            assert_eq!(compared.order, [0, 1], "{loss:?}");
        }
    }
}
