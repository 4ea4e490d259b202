//! Images: all positions of a grid from the first step on, by confidence (MaskGIT, MMaDA) or at random (MaskGRPO).

use super::{View, highest};
use crate::diffusion::params::{ImageParams, ImageSampler, Schedule};
use crate::diffusion::sample::{Rule, Score};
use crate::diffusion::schedule::{compat_noise, emerge_probability, masked_after};

/// Where an image stands.
#[derive(Debug, Clone)]
pub(crate) struct ImagePolicy {
    sampler: ImageSampler,
    schedule: Schedule,
    /// Scale of the confidence noise, before it is annealed.
    noise: f64,
    pub(super) rule: Rule,
    cells: usize,
    pub(super) steps: usize,
    pub(super) step: usize,
}

impl ImagePolicy {
    pub(super) fn new(params: &ImageParams) -> Self {
        Self {
            sampler: params.sampler,
            schedule: params.schedule,
            noise: params.temperature,
            rule: Rule { temperature: params.draw_temperature(), top_k: 0, top_p: 1.0, score: Score::Plain },
            cells: params.grid.0 * params.grid.1,
            steps: params.steps,
            step: 0,
        }
    }

    pub(super) fn due(&mut self, view: View<'_>) -> Vec<u32> {
        let masked = view.eligible(view.masked.len());
        while !masked.is_empty() {
            let due = match self.sampler {
                ImageSampler::Emerge => {
                    view.picked(self.step, &masked, emerge_probability(self.schedule, self.step, self.steps))
                }
                ImageSampler::Maskgit | ImageSampler::MaskgitCompat if self.commits(masked.len()) > 0 => masked.clone(),
                ImageSampler::Maskgit | ImageSampler::MaskgitCompat => Vec::new(),
            };
            if !due.is_empty() {
                return due;
            }
            self.step += 1;
        }
        Vec::new()
    }

    fn commits(&self, masked: usize) -> usize {
        masked - masked_after(self.schedule, self.cells, masked, self.step, self.steps).min(masked)
    }

    pub(super) fn choose(&self, view: View<'_>, positions: &[u32], scores: &[f64]) -> Vec<usize> {
        let noisy = |scale: f64| -> Vec<f64> {
            let noise = |p: u32| if scale > 0.0 { scale * view.gumbel(self.step, p) } else { 0.0 };
            // The floor is the reference's.
            positions.iter().zip(scores).map(|(&p, score)| score.max(1e-20).ln() + noise(p)).collect()
        };
        let n = self.commits(scores.len());
        match self.sampler {
            ImageSampler::Emerge => (0..scores.len()).collect(),
            ImageSampler::Maskgit => {
                highest(&noisy(self.noise * (1.0 - (self.step + 1) as f64 / self.steps as f64)), n)
            }
            ImageSampler::MaskgitCompat => {
                highest_and_equals(&noisy(compat_noise(self.noise, self.step, self.steps)), n)
            }
        }
    }
}

/// Indices of the `n` highest values, and of all that equal the last of them: MMaDA masks what is strictly below its
/// cut, in f32.
fn highest_and_equals(values: &[f64], n: usize) -> Vec<usize> {
    let mut sorted: Vec<f32> = values.iter().map(|&value| value as f32).collect();
    sorted.sort_unstable_by(|a, b| b.total_cmp(a));
    match n.checked_sub(1).and_then(|last| sorted.get(last)) {
        Some(&cut) => (0..values.len()).filter(|&i| values[i] as f32 >= cut).collect(),
        None => (0..values.len().min(n)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_of_the_last_one_commit_too() {
        assert_eq!(highest_and_equals(&[0.1, 0.5, 0.9, 0.5], 2), [1, 2, 3]);
        assert_eq!(highest_and_equals(&[0.1, 0.5, 0.9, 0.5], 1), [2]);
        assert_eq!(highest_and_equals(&[0.1, 0.5], 0), [0; 0]);
        assert_eq!(highest_and_equals(&[0.1, 0.5], 5), [0, 1]);
    }

    #[test]
    fn compat_noise_is_a_running_product() {
        let scales: Vec<f64> = (0..4).map(|step| compat_noise(2.0, step, 4)).collect();
        assert_eq!(scales, [1.5, 0.75, 0.1875, 0.0]);
    }
}
