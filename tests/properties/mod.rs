//! Properties that hold for every input, tried on many: exactness in any mix, scheduling, serving.

mod caches;
mod exactness;
pub(crate) mod fake;
mod reference;
mod scheduling;
mod serving;
mod starter;
mod swaps;
