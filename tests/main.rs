//! Tests from outside the crate.

mod crash;
