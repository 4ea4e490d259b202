//! Properties that hold for every input, tried on many: exactness in any mix, scheduling, serving.

mod caches;
pub(crate) mod exactness;
pub(crate) mod fake;
mod overload;
mod reference;
mod savings;
mod scheduling;
mod serving;
pub(crate) mod starter;
mod swaps;
