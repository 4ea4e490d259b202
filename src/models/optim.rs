//! Optimisers over named variables, with state that can be saved: AdamW, and Muon for the hidden matrices.
//!
//! candle's own AdamW keeps its state private, so a run on it cannot be resumed.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var};

/// How one variable is updated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Loshchilov and Hutter, arXiv 1711.05101.
    AdamW,
    /// Momentum, then orthogonalised: K. Jordan et al., "Muon" (2024), scaled as in arXiv 2502.16982 so that one
    /// learning rate serves both rules. For matrices only.
    Muon,
}

/// Hyperparameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimConfig {
    /// AdamW's decay of the mean gradient.
    pub beta1: f64,
    /// AdamW's decay of the mean squared gradient.
    pub beta2: f64,
    /// AdamW's denominator offset.
    pub eps: f64,
    /// Decoupled weight decay, matrices only.
    pub weight_decay: f64,
    /// Muon's momentum.
    pub momentum: f64,
    /// Largest global norm of the gradients; larger ones are scaled down.
    pub max_grad_norm: f64,
}

impl Default for OptimConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.01, momentum: 0.95, max_grad_norm: 1.0 }
    }
}

/// A trainable variable.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Name in the checkpoint.
    pub name: String,
    /// The value; updated in place, so tensors made of it follow.
    pub var: Var,
    /// How it is updated.
    pub rule: Rule,
}

/// What is subtracted (times the rate), and the new first and second state.
type Update = (Tensor, Tensor, Option<Tensor>);

/// An optimiser with its state.
pub struct Optimizer {
    config: OptimConfig,
    parameters: Vec<Parameter>,
    first: Vec<Tensor>,
    second: Vec<Option<Tensor>>,
    step: u64,
}

impl Optimizer {
    /// A fresh optimiser of `parameters`.
    ///
    /// # Errors
    /// When the device has no memory for the state.
    pub fn new(parameters: Vec<Parameter>, config: OptimConfig) -> Result<Self> {
        let first = parameters.iter().map(|p| p.var.zeros_like()).collect::<Result<_>>()?;
        let second = parameters
            .iter()
            .map(|p| if p.rule == Rule::AdamW { p.var.zeros_like().map(Some) } else { Ok(None) })
            .collect::<Result<_>>()?;
        Ok(Self { config, parameters, first, second, step: 0 })
    }

    /// The variables, in the order in which `step` takes their gradients.
    #[must_use]
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Updates made.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// One update. Returns the global gradient norm before clipping; with a norm that is not finite nothing changes.
    ///
    /// # Errors
    /// When a gradient does not fit its variable or the device fails.
    pub fn step(&mut self, grads: &[Tensor], lr: f64) -> Result<f64> {
        let mut squares = 0.0;
        for grad in grads {
            squares += f64::from(grad.sqr()?.sum_all()?.to_scalar::<f32>()?);
        }
        let norm = squares.sqrt();
        if !norm.is_finite() {
            return Ok(norm);
        }
        self.step += 1;
        let clip = (self.config.max_grad_norm / norm).min(1.0);
        let updates = self.updates(grads, clip)?;
        for (i, (update, first, second)) in updates.into_iter().enumerate() {
            let var = &self.parameters[i].var;
            let decay = if var.rank() == 2 { lr * self.config.weight_decay } else { 0.0 };
            var.set(&((var.as_tensor() * (1.0 - decay))? - (update * lr)?)?)?;
            (self.first[i], self.second[i]) = (first, second);
        }
        Ok(norm)
    }

    /// Updates and new states of all variables. Each is a function of its own gradient and state, so they are spread
    /// over threads: the many small products of one Muon update would leave all but one idle.
    fn updates(&self, grads: &[Tensor], clip: f64) -> Result<Vec<Update>> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(grads.len().max(1));
        let one = |i: usize| match self.parameters[i].rule {
            Rule::AdamW => self.adam_update(i, &(&grads[i] * clip)?),
            Rule::Muon => self.muon_update(i, &grads[i]),
        };
        let mut parts: Vec<_> = std::thread::scope(|scope| {
            let work = |t| scope.spawn(move || (t..grads.len()).step_by(threads).map(one).collect::<Result<Vec<_>>>());
            let workers: Vec<_> = (0..threads).map(work).collect();
            let joined =
                workers.into_iter().map(|w| w.join().unwrap_or_else(|_| candle_core::bail!("a thread failed")));
            joined.map(|part| part.map(Vec::into_iter)).collect::<Result<_>>()
        })?;
        Ok((0..grads.len()).filter_map(|i| parts[i % threads].next()).collect())
    }

    fn adam_update(&self, i: usize, grad: &Tensor) -> Result<Update> {
        let OptimConfig { beta1, beta2, eps, .. } = self.config;
        let mean = ((&self.first[i] * beta1)? + (grad * (1.0 - beta1))?)?;
        let Some(second) = &self.second[i] else { candle_core::bail!("AdamW state of parameter {i} is missing") };
        let square = ((second * beta2)? + (grad.sqr()? * (1.0 - beta2))?)?;
        let correction1 = 1.0 - beta1.powf(self.step as f64);
        let correction2 = 1.0 - beta2.powf(self.step as f64);
        let update = ((&mean / correction1)? / ((&square / correction2)?.sqrt()? + eps)?)?;
        Ok((update, mean.detach(), Some(square.detach())))
    }

    fn muon_update(&self, i: usize, grad: &Tensor) -> Result<Update> {
        let momentum = self.config.momentum;
        let buffer = ((&self.first[i] * momentum)? + grad)?.detach();
        // Nesterov: look one step ahead.
        let direction = orthogonalise(&(grad + (&buffer * momentum)?)?)?;
        let (rows, cols) = direction.dims2()?;
        Ok(((direction * (0.2 * (rows.max(cols) as f64).sqrt()))?, buffer, None))
    }

    /// The state by name, to be saved beside the weights.
    #[must_use]
    pub fn state(&self) -> BTreeMap<String, Tensor> {
        let mut out = BTreeMap::new();
        for (i, parameter) in self.parameters.iter().enumerate() {
            out.insert(format!("first.{}", parameter.name), self.first[i].clone());
            if let Some(second) = &self.second[i] {
                out.insert(format!("second.{}", parameter.name), second.clone());
            }
        }
        out
    }

    /// Takes up a saved state after `step` updates.
    ///
    /// # Errors
    /// When a tensor is missing.
    pub fn restore(&mut self, step: u64, mut take: impl FnMut(&str) -> Result<Tensor>) -> Result<()> {
        for (i, parameter) in self.parameters.iter().enumerate() {
            self.first[i] = take(&format!("first.{}", parameter.name))?;
            if self.second[i].is_some() {
                self.second[i] = Some(take(&format!("second.{}", parameter.name))?);
            }
        }
        self.step = step;
        Ok(())
    }
}

/// The nearest semi-orthogonal matrix, roughly: five quintic Newton–Schulz iterations push all singular values
/// towards 1 (coefficients from the Muon write-up).
fn orthogonalise(x: &Tensor) -> Result<Tensor> {
    const COEFFICIENTS: (f64, f64, f64) = (3.4445, -4.7750, 2.0315);
    let (rows, cols) = x.dims2()?;
    let tall = rows > cols;
    let x = if tall { x.t()?.contiguous()? } else { x.clone() };
    let norm = f64::from(x.sqr()?.sum_all()?.to_scalar::<f32>()?).sqrt();
    let mut x = (x / (norm + 1e-7))?;
    let (a, b, c) = COEFFICIENTS;
    for _ in 0..5 {
        let gram = x.matmul(&x.t()?)?;
        let polynomial = ((&gram * b)? + (gram.matmul(&gram)? * c)?)?;
        x = ((&x * a)? + polynomial.matmul(&x)?)?;
    }
    if tall { x.t()?.contiguous() } else { Ok(x) }
}

/// Warm-up, plateau, linear decay to zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LrSchedule {
    /// Rate of the plateau.
    pub peak: f64,
    /// Steps of linear warm-up.
    pub warmup: u64,
    /// Steps in all.
    pub total: u64,
    /// Share of the steps, at the end, over which the rate falls to zero.
    pub decay_share: f64,
}

impl LrSchedule {
    /// The rate of zero-based step `step`.
    #[must_use]
    pub fn at(&self, step: u64) -> f64 {
        let up = (step + 1) as f64 / self.warmup.max(1) as f64;
        let down = (self.total.saturating_sub(step)) as f64 / (self.total as f64 * self.decay_share).max(1.0);
        self.peak * up.min(down).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn both_rules_find_a_least_squares_solution_and_resume_exactly() -> Result<()> {
        for rule in [Rule::AdamW, Rule::Muon] {
            let device = Device::Cpu;
            let (x, w) = (Tensor::randn(0f32, 1.0, (64, 6), &device)?, Tensor::randn(0f32, 1.0, (6, 4), &device)?);
            let y = x.matmul(&w)?;
            let make = |value: &Tensor| -> Result<_> {
                let var = Var::from_tensor(value)?;
                Optimizer::new(vec![Parameter { name: "w".into(), var, rule }], OptimConfig::default())
            };
            let mut optimizer = make(&w.zeros_like()?)?;
            let lr = LrSchedule { peak: 0.1, warmup: 5, total: 300, decay_share: 0.7 };
            let loss = |o: &Optimizer| (x.matmul(&o.parameters()[0].var)? - &y)?.sqr()?.mean_all();
            let advance = |o: &mut Optimizer, step| -> Result<()> {
                let grads = loss(o)?.backward()?;
                let grad = grads.get(&o.parameters()[0].var).unwrap().clone();
                o.step(&[grad], lr.at(step)).map(|_| ())
            };
            for step in 0..250 {
                advance(&mut optimizer, step)?;
            }
            let mut resumed = make(optimizer.parameters()[0].var.as_tensor())?;
            let state = optimizer.state();
            resumed.restore(optimizer.steps(), |name| Ok(state[name].clone()))?;
            for step in 250..300 {
                advance(&mut optimizer, step)?;
                advance(&mut resumed, step)?;
            }
            assert!(loss(&optimizer)?.to_scalar::<f32>()? < 1e-3, "{rule:?}");
            let values = |o: &Optimizer| o.parameters()[0].var.flatten_all()?.to_vec1::<f32>();
            assert_eq!(values(&optimizer)?, values(&resumed)?);
        }
        Ok(())
    }

    #[test]
    fn orthogonalised_matrices_have_singular_values_near_one() -> Result<()> {
        for shape in [(8, 20), (20, 8), (12, 12)] {
            let x = orthogonalise(&Tensor::randn(0f32, 3.0, shape, &Device::Cpu)?)?;
            let gram = if shape.0 < shape.1 { x.matmul(&x.t()?)? } else { x.t()?.matmul(&x)? };
            let trace: f32 = (0..shape.0.min(shape.1)).map(|i| gram.to_vec2::<f32>().unwrap()[i][i]).sum();
            let mean = trace / shape.0.min(shape.1) as f32;
            assert!((0.5..1.3).contains(&mean), "{shape:?}: {mean}");
        }
        Ok(())
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() -> Result<()> {
        let var = Var::from_tensor(&Tensor::ones(3, candle_core::DType::F32, &Device::Cpu)?)?;
        let parameter = Parameter { name: "w".into(), var: var.clone(), rule: Rule::AdamW };
        let mut optimizer = Optimizer::new(vec![parameter], OptimConfig::default())?;
        let norm = optimizer.step(&[Tensor::new(&[f32::NAN, 0.0, 0.0], &Device::Cpu)?], 0.1)?;
        assert!(norm.is_nan() && optimizer.steps() == 0);
        assert_eq!(var.to_vec1::<f32>()?, [1.0; 3]);
        Ok(())
    }

    #[test]
    fn the_rate_rises_stays_and_falls() {
        let lr = LrSchedule { peak: 1.0, warmup: 10, total: 100, decay_share: 0.5 };
        assert!(lr.at(0) < 0.11 && lr.at(20) == 1.0 && (lr.at(75) - 0.5).abs() < 1e-9 && lr.at(99) < 0.03);
    }
}
