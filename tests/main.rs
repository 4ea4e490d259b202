//! Tests from outside the crate. One binary, so that linking happens once.
#![cfg(test)]

mod allocations;
mod api;
mod bench;
mod browser;
mod cli;
mod crash;
mod golden;
mod hub;
mod kill;
mod layering;
mod learning;
mod memory;
mod metrics;
mod peft;
mod properties;
mod readme;
mod server;
mod shutdown;

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;
