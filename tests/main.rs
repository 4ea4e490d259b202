//! Tests from outside the crate.
#![cfg(test)]

mod crash;
mod golden;
mod properties;
