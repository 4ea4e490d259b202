//! Tests from outside the crate.

mod crash;
mod properties;
